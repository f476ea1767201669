//! Groups: what is granted to one reaches all in it, and all in the groups in it.
//!
//! Invariant: a membership counts while its own time has come and is not over, whatever the others on the way
//! say; so a path counts while all its memberships do.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
};

use super::{
    name::{GroupId, PrincipalId},
    time::{Timestamp, Window},
};

/// Most groups.
pub const MAX_GROUPS: i64 = 100_000;
/// Most groups that one principal is directly in.
pub const MAX_MEMBERSHIPS: i64 = 200;
/// Most groups in one another, from the outermost to the innermost.
pub const MAX_DEPTH: i64 = 10;
/// Most groups that somebody who may see some only finds something in at once.
pub const MAX_REACH: usize = 16;
/// Most characters of a display name, and of a description.
pub const MAX_DISPLAY_NAME: usize = 200;
pub const MAX_DESCRIPTION: usize = 1000;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub id: GroupId,
    /// Counts the changes; the etag.
    pub revision: i64,
    pub display_name: String,
    pub description: String,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
}

/// One field set to a new value.
#[derive(Clone, Debug)]
pub enum Edit {
    DisplayName(String),
    Description(String),
}

/// The fields that an update may name.
pub const WRITABLE: [&str; 2] = ["display_name", "description"];

impl Group {
    pub const fn new(id: GroupId, now: Timestamp) -> Self {
        Self {
            id,
            revision: 1,
            display_name: String::new(),
            description: String::new(),
            create_time: now,
            update_time: now,
        }
    }

    pub fn edit(&mut self, edit: Edit) {
        match edit {
            Edit::DisplayName(text) => self.display_name = text,
            Edit::Description(text) => self.description = text,
        }
    }

    /// To be called once with each stored change.
    pub fn touch(&mut self, now: Timestamp) {
        self.revision += 1;
        self.update_time = now;
    }
}

/// That a principal is in a group, directly.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    pub group: GroupId,
    pub member: PrincipalId,
    pub window: Window,
    /// The resource name of whoever added it.
    pub added_by: String,
    pub create_time: Timestamp,
}

/// How a principal is in a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Way {
    /// When it ends; [`Timestamp::MAX`] if never.
    pub end_time: Timestamp,
    /// The groups on the way, the one that the principal is directly in first.
    pub via: Vec<GroupId>,
}

/// The groups that a principal is in by these memberships, each by the way that lasts longest and, of those, has
/// the fewest groups; and, by no way at all, the principal itself.
pub fn ways<'a>(
    principal: PrincipalId,
    memberships: impl Iterator<Item = &'a Membership>,
) -> BTreeMap<PrincipalId, Way> {
    let mut above: BTreeMap<PrincipalId, Vec<&Membership>> = BTreeMap::new();
    for membership in memberships {
        above.entry(membership.member).or_default().push(membership);
    }
    // The best way first: none that is found later can be better (Dijkstra).
    let mut ways = BTreeMap::new();
    let mut open = BinaryHeap::from([(Timestamp::MAX, Reverse((0, Vec::new())), principal)]);
    while let Some((end_time, Reverse((length, via)), at)) = open.pop() {
        if ways.contains_key(&at) {
            continue;
        }
        for membership in above.get(&at).into_iter().flatten() {
            let end = membership.window.last();
            let via = via.iter().copied().chain([membership.group]).collect();
            let group = PrincipalId::Group(membership.group);
            open.push((end_time.min(end), Reverse((length + 1, via)), group));
        }
        ways.insert(at, Way { end_time, via });
    }
    ways
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::domain::name::{AccountId, UserId};

    const NOW: Timestamp = Timestamp::from_seconds(1_000);
    const ANN: PrincipalId = PrincipalId::Account(AccountId::User(UserId(Uuid::nil())));

    const fn group(number: u128) -> PrincipalId {
        PrincipalId::Group(GroupId(Uuid::from_u128(number)))
    }

    fn membership(
        member: PrincipalId,
        of: u128,
        start: Option<i64>,
        end: Option<i64>,
    ) -> Membership {
        Membership {
            group: GroupId(Uuid::from_u128(of)),
            member,
            window: Window {
                start: start.map(|s| NOW.plus_s(s)),
                end: end.map(|s| NOW.plus_s(s)),
            },
            added_by: String::new(),
            create_time: NOW,
        }
    }

    /// Where Ann is: how long, and through which groups.
    fn found(memberships: &[Membership]) -> Vec<(PrincipalId, Option<i64>, Vec<u128>)> {
        let in_effect = memberships.iter().filter(|it| it.window.contains(NOW));
        let ways = ways(ANN, in_effect).into_iter();
        let shown = ways.filter(|(at, _)| *at != ANN).map(|(at, way)| {
            let end = (way.end_time != Timestamp::MAX).then(|| way.end_time.seconds() - 1_000);
            (at, end, way.via.iter().map(|id| id.0.as_u128()).collect())
        });
        shown.collect()
    }

    #[test]
    fn a_way_ends_with_the_first_membership_on_it() {
        let memberships = [
            membership(ANN, 1, None, Some(50)),
            membership(group(1), 2, None, Some(90)),
            membership(group(2), 3, Some(0), None),
        ];
        let expected = vec![
            (group(1), Some(50), vec![1]),
            (group(2), Some(50), vec![1, 2]),
            (group(3), Some(50), vec![1, 2, 3]),
        ];
        assert_eq!(found(&memberships), expected);
    }

    #[test]
    fn what_has_not_begun_or_is_over_leads_nowhere() {
        let memberships = [
            membership(ANN, 1, Some(1), None),
            membership(group(1), 2, None, None),
            membership(ANN, 3, None, Some(0)),
            membership(group(7), 4, None, None),
        ];
        assert_eq!(found(&memberships), []);
    }

    #[test]
    fn of_several_ways_the_one_that_lasts_longest_counts_and_then_the_shortest() {
        let memberships = [
            membership(ANN, 1, None, Some(5)),
            membership(ANN, 2, None, None),
            membership(group(2), 1, None, Some(9)),
            membership(group(1), 3, None, None),
            membership(group(2), 3, None, Some(9)),
        ];
        let expected = vec![
            (group(1), Some(9), vec![2, 1]),
            (group(2), None, vec![2]),
            (group(3), Some(9), vec![2, 3]),
        ];
        assert_eq!(found(&memberships), expected);
    }

    #[test]
    fn a_circle_comes_to_an_end() {
        let memberships = [
            membership(ANN, 1, None, None),
            membership(group(1), 2, None, None),
            membership(group(2), 1, None, None),
            membership(group(2), 2, None, None),
        ];
        let expected = vec![(group(1), None, vec![1]), (group(2), None, vec![1, 2])];
        assert_eq!(found(&memberships), expected);
    }
}
