//! Messages to people: what they hold, that they arrive, and that nobody else learns anything by them.

use std::{collections::HashMap, sync::Arc, time::Duration};

use accountd::{
    domain::error::Reason,
    grpc::{call::Call, pb},
    jobs,
    messenger::{self, dead},
};
use pb::{
    ChallengeMethod,
    answer_challenge_request::Answer,
    contact::Purpose::{self, Login, Notify, Recovery},
    create_challenge_request, create_password_reset_request as reset,
    send_contact_code_request::Delivery,
};
use tonic::Status;

use crate::{
    authority::Authority,
    contacts::{self, email, phone},
    credentials, factors,
    harness::{
        Actor, Engine, Refusal as _, Server, SignedIn, assert_refused, on_both_engines, password,
    },
    mail_server::{MailServer, Manner},
    other::Other,
};

/// A server whose mails arrive, and where.
pub async fn with_mail(engine: Engine) -> (Server, MailServer) {
    with_mail_and(engine, |_| {}).await
}

async fn with_mail_and(
    engine: Engine,
    change: impl FnOnce(&mut accountd::config::Config),
) -> (Server, MailServer) {
    let authority = Authority::new("mail");
    let mail = MailServer::new(&authority, false).await;
    let server = engine.server_with(|config| {
        mail.is_used(config, &authority);
        config.messages.pages_url = Some("https://login.example".to_owned());
        change(config);
    });
    (server.await, mail)
}

async fn send_code(actor: &Actor, contact: &str) -> Result<pb::SendContactCodeResponse, Status> {
    let request = pb::SendContactCodeRequest {
        name: contact.to_owned(),
        delivery: Delivery::Send.into(),
        ..Default::default()
    };
    Ok(actor
        .contacts()
        .send_contact_code(request)
        .await?
        .into_inner())
}

/// A contact that a person proves with what came there.
async fn proven(
    mail: &MailServer,
    person: &SignedIn,
    address: &str,
    purposes: &[Purpose],
) -> pb::Contact {
    let created = person
        .actor
        .create_contact("users/me", email(address, purposes))
        .await;
    let name = created.expect("created").name;
    send_code(&person.actor, &name).await.expect("sent");
    let code = mail.next_to(address).await.code();
    person
        .actor
        .verify_contact(&name, &code)
        .await
        .expect("verified")
}

pub async fn ask_reset(
    actor: &Actor,
    identifier: &str,
) -> Result<pb::CreatePasswordResetResponse, Status> {
    let request = pb::CreatePasswordResetRequest {
        account: Some(reset::Account::Identifier(identifier.to_owned())),
        delivery: reset::Delivery::Send.into(),
        ..Default::default()
    };
    Ok(actor
        .credentials()
        .create_password_reset(request)
        .await?
        .into_inner())
}

pub async fn ask_code(
    actor: &Actor,
    identifier: &str,
    method: ChallengeMethod,
) -> Result<pb::Challenge, Status> {
    let request = pb::CreateChallengeRequest {
        identifier: identifier.to_owned(),
        method: method.into(),
        delivery: create_challenge_request::Delivery::Send.into(),
        ..Default::default()
    };
    Ok(actor
        .sessions()
        .create_challenge(request)
        .await?
        .into_inner())
}

async fn change_email(actor: &Actor, contact: &pb::Contact, address: &str) -> pb::Contact {
    let new = pb::Contact {
        value: email(address, &[]).value,
        etag: String::new(),
        ..contact.clone()
    };
    let paths = vec!["email".to_owned()];
    let request = pb::UpdateContactRequest {
        contact: Some(new),
        update_mask: Some(prost_types::FieldMask { paths }),
        ..Default::default()
    };
    actor
        .contacts()
        .update_contact(request)
        .await
        .expect("updated")
        .into_inner()
}

pub async fn revert(actor: &Actor, token: &str) -> Result<pb::RevertContactResponse, Status> {
    let request = pb::RevertContactRequest {
        token: token.to_owned(),
        ..Default::default()
    };
    Ok(actor.contacts().revert_contact(request).await?.into_inner())
}

/// What has become of the messages that a process has looked at, try by try.
fn outcomes(process: &accountd::server::Server) -> HashMap<String, u64> {
    let text = process.app.metrics.encode().expect("metrics");
    let mut outcomes = HashMap::new();
    for line in text.lines() {
        let Some(labels) = line.strip_prefix("accountd_messages_total{") else {
            continue;
        };
        let outcome = labels
            .split("outcome=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let count = labels
            .rsplit(' ')
            .next()
            .and_then(|count| count.parse::<u64>().ok());
        *outcomes
            .entry(outcome.expect("a label").to_owned())
            .or_default() += count.expect("a count");
    }
    outcomes
}

/// Waits until something has become of messages.
async fn until(is_so: impl Fn() -> bool) {
    for _ in 0..3_000 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("nothing has become of it");
}

/// Waits until no message waits any more, and tells what has become of those there were.
async fn settled(server: &Server) -> HashMap<String, u64> {
    for _ in 0..600 {
        let waiting = messenger::waiting(&server.running.app, true).await;
        if waiting.expect("counted") == 0 {
            return outcomes(&server.running);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("messages wait on");
}

/// Has everything sent again that could not be.
async fn redrive(server: &Server) -> accountd::domain::error::Result<u64> {
    let call = Call::system(&server.running.app, "");
    dead::redrive(call.db(), None, &server.env.environment()).await
}

on_both_engines! {
    async fn a_code_comes_by_mail_and_proves_the_address(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let created = ann
            .actor
            .create_contact("users/me", email("Ann@Bücher.example", &[Login]))
            .await;
        let name = created.expect("created").name;
        let sent = send_code(&ann.actor, &name).await.expect("sent");
        assert_eq!(sent.code, "", "it is on its way, and nowhere else");
        let first = mail.next_to("Ann@xn--bcher-kva.example").await;
        assert_eq!(first.from, "no-reply@id.example");
        assert_eq!(first.header("From"), "Example <no-reply@id.example>");
        assert_eq!(first.header("Auto-Submitted"), "auto-generated");
        assert!(
            first.header("Subject").starts_with("Your code for accountd: "),
            "{first:?}"
        );
        assert!(first.header("Message-ID").ends_with("@id.example>"));
        assert!(
            !first.text().contains("Ann"),
            "whose address it is nobody knows yet"
        );
        let (page, needs) = first.link();
        assert_eq!(
            (&*page, &needs["contact"]),
            ("https://login.example/verify-contact", &name)
        );
        // The link is good for longer than the code.
        server.advance_s(601);
        let ann = server.sign_in("ann").await.actor;
        assert_refused(
            ann.verify_contact(&name, &first.code()).await,
            Reason::InvalidCode,
        );
        assert_refused(
            ann.verify_contact(&name, &needs["code"].replace('a', "b")).await,
            Reason::InvalidCode,
        );
        let late = ann
            .create_contact("users/me", email("late@example.org", &[]))
            .await;
        let late = late.expect("created").name;
        send_code(&ann, &late).await.expect("sent");
        let (_, late_needs) = mail.next_to("late@example.org").await.link();
        let verified = ann.verify_contact(&name, &needs["code"]).await.expect("verified");
        let proof = verified.verification.expect("proof");
        assert_eq!(proof.method(), pb::contact::verification::Method::SentLink);
        assert_refused(
            ann.verify_contact(&name, &needs["code"]).await,
            Reason::WrongState,
        );
        server.advance_s(86_400);
        let ann = server.sign_in("ann").await.actor;
        assert_refused(
            ann.verify_contact(&late, &late_needs["code"]).await,
            Reason::InvalidCode,
        );
    }

    async fn people_sign_in_with_a_code_that_comes_by_mail(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        proven(&mail, &ann, "ann@example.org", &[Login]).await;
        let anonymous = server.anonymous().await;
        for typed in ["ann", "ANN@example.org"] {
            let asked = ask_code(&anonymous, typed, ChallengeMethod::EmailCode)
                .await
                .expect("asked");
            assert_eq!(asked.code, "");
            let came = mail.next_to("ann@example.org").await;
            assert!(came.header("Subject").contains("code"));
            let (page, needs) = came.link();
            assert_eq!(
                (&*page, &needs["code"]),
                ("https://login.example/sign-in", &came.code())
            );
            assert!(
                !came.data.contains("adch_"),
                "without the challenge the code is nothing"
            );
            // Of another challenge, however right the code.
            let other = ask_code(&anonymous, "somebody", ChallengeMethod::EmailCode)
                .await
                .expect("asked");
            let wrong = factors::answer(&anonymous, &other, Answer::Code(came.code())).await;
            assert_refused(wrong, Reason::InvalidCode);
            let answered = factors::answer(&anonymous, &asked, Answer::Code(came.code())).await;
            let tokens = SignedIn::new(&anonymous, answered.expect("signed in"));
            assert_eq!(tokens.name(), ann.name());
            let again = factors::answer(&anonymous, &asked, Answer::Code(came.code())).await;
            assert_refused(again, Reason::ChallengeEnded);
        }
        let sms = ask_code(&anonymous, "ann", ChallengeMethod::SmsCode).await;
        assert_refused(sms, Reason::DeliveryUnavailable);
    }

    async fn who_forgot_a_password_gets_back_in_and_everybody_concerned_is_told(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        proven(&mail, &ann, "login@example.org", &[Login]).await;
        proven(&mail, &ann, "recovery@example.org", &[Recovery]).await;
        proven(&mail, &ann, "notify@example.org", &[Notify]).await;
        mail.next_to("recovery@example.org").await; // of the third
        let anonymous = server.anonymous().await;
        let answer = ask_reset(&anonymous, "login@example.org").await.expect("asked");
        assert_eq!(answer.code, "");
        let came = mail.next_to("recovery@example.org").await;
        let (page, needs) = came.link();
        assert_eq!(page, "https://login.example/reset-password");
        // A second one beside the first, of which nobody is robbed by asking.
        ask_reset(&anonymous, "ann").await.expect("asked");
        let (_, newer) = mail.next_to("recovery@example.org").await.link();
        let done = credentials::redeem(&anonymous, &needs["code"], "four calm walruses").await;
        assert_eq!(done.expect("redeemed").ended_sessions, 1);
        let late = credentials::redeem(&anonymous, &newer["code"], "four calm otters, too").await;
        assert_refused(late, Reason::InvalidCode);
        let mut told = [mail.next().await, mail.next().await].map(|mail| {
            assert!(mail.header("Subject").contains("was changed"), "{mail:?}");
            mail.to[0].clone()
        });
        told.sort();
        assert_eq!(told, ["notify@example.org", "recovery@example.org"]);
        anonymous
            .sign_in("ann", "four calm walruses")
            .await
            .expect("signed in");
        assert_refused(ann.actor.get_user("users/me").await, Reason::TokenRevoked);
        assert_eq!(server.events("credential.password_reset_sent").await.len(), 2);
    }

    async fn the_answer_is_the_same_whoever_is_asked_for(engine: Engine) {
        let (server, mail) = with_mail_and(engine, |config| config.messages.address_free = 1000).await;
        let ann = server.signed_in("ann").await;
        proven(&mail, &ann, "ann@example.org", &[Login, Recovery]).await;
        let unproven = email("unproven@example.org", &[Login, Recovery]);
        ann.actor
            .create_contact("users/me", unproven)
            .await
            .expect("created");
        let gone = server.signed_in("gone").await;
        proven(&mail, &gone, "gone@example.org", &[Login, Recovery]).await;
        server
            .operator()
            .await
            .suspend_user(gone.name())
            .await
            .expect("suspended");
        let powerful = server.signed_in("powerful").await;
        server.grant(powerful.name(), "roles/operator").await;
        let anonymous = server.anonymous().await;
        let kinds = [
            "ann",
            "ann@example.org",
            "nobody",
            "nobody@example.org",
            "unproven@example.org",
            "gone",
            "gone@example.org",
            "powerful",
            "not an identifier",
            "+41446681800",
        ];
        let (mut answers, mut challenges) = (Vec::new(), Vec::new());
        for kind in kinds {
            answers.push(format!(
                "{:?}",
                ask_reset(&anonymous, kind).await.expect("asked").expire_time
            ));
            let challenge = ask_code(&anonymous, kind, ChallengeMethod::EmailCode)
                .await
                .expect("asked");
            let pb::Challenge {
                name,
                methods,
                passkey_options_json,
                code,
                expire_time,
            } = challenge;
            challenges.push(format!(
                "{} {methods:?} {passkey_options_json} {code} {expire_time:?}",
                name.len()
            ));
        }
        answers.dedup();
        challenges.dedup();
        assert_eq!(
            (answers.len(), challenges.len()),
            (1, 1),
            "{answers:?} {challenges:?}"
        );
        settled(&server).await;
        let mut to: Vec<String> = mail
            .mails()
            .into_iter()
            .skip(2)
            .map(|mail| mail.to.join(","))
            .collect();
        to.dedup();
        assert_eq!(
            to,
            ["ann@example.org"],
            "to proven addresses of people who may sign in"
        );
        assert_eq!(mail.mails().len(), 2 + 4);
    }

    async fn a_hostile_change_is_undone_by_whoever_has_the_old_address(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let own = proven(&mail, &ann, "ann@example.org", &[Login, Recovery, Notify]).await;
        // Somebody has got hold of a session.
        let thief = server.sign_in("ann").await;
        change_email(&thief.actor, &own, "mallory@example.net").await;
        let notice = mail.next_to("ann@example.org").await;
        assert!(
            notice.text().contains("m…@example.net") && !notice.text().contains("mallory"),
            "{notice:?}"
        );
        let (page, needs) = notice.link();
        assert_eq!(page, "https://login.example/revert-contact");
        send_code(&thief.actor, &own.name).await.expect("sent");
        let code = mail.next_to("mallory@example.net").await.code();
        thief
            .actor
            .verify_contact(&own.name, &code)
            .await
            .expect("verified");
        mail.next_to("ann@example.org").await;
        let anonymous = server.anonymous().await;
        ask_reset(&anonymous, "mallory@example.net").await.expect("asked");
        let (_, stolen) = mail.next_to("mallory@example.net").await.link();
        let later = server.sign_in("ann").await;

        server.advance_s(7 * 24 * 3600 - 1);
        let anonymous = server.anonymous().await;
        assert_refused(revert(&anonymous, "adcb_x_y").await, Reason::InvalidCode);
        let reverted = revert(&anonymous, &needs["token"]).await.expect("reverted");
        assert_eq!(reverted.ended_sessions, 3);
        assert_refused(
            anonymous.refresh(&later.tokens.refresh_token).await,
            Reason::InvalidRefreshToken,
        );
        assert_refused(
            credentials::redeem(&anonymous, &stolen["code"], "four calm walruses").await,
            Reason::InvalidCode,
        );
        let owner = server.operator().await;
        let contact = owner.get_contact(&own.name).await.expect("read");
        assert_eq!(contact.value, own.value);
        assert_eq!(
            (contact.purposes, contact.primary, &*contact.pending_value),
            (own.purposes, true, "")
        );
        assert_eq!(
            owner.get_user(ann.name()).await.expect("read").primary_email,
            "ann@example.org"
        );
        anonymous
            .sign_in("ann@example.org", &password("ann"))
            .await
            .expect("hers again");
        let gone = anonymous.sign_in("mallory@example.net", &password("ann")).await;
        assert_refused(gone, Reason::InvalidCredentials);
        assert_refused(revert(&anonymous, &needs["token"]).await, Reason::InvalidCode);
        assert_eq!(server.events("contact.reverted").await.len(), 1);
    }

    async fn what_was_removed_comes_back_and_what_was_added_goes(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let own = proven(&mail, &ann, "ann@example.org", &[Login, Recovery]).await;
        let added = proven(&mail, &ann, "mallory@example.net", &[Login, Recovery]).await;
        let notice = mail.next_to("ann@example.org").await;
        assert!(notice.text().contains("added"), "{notice:?}");
        let (_, undo_adding) = notice.link();
        server.advance_s(1);
        let delete = pb::DeleteContactRequest {
            name: own.name.clone(),
            ..Default::default()
        };
        ann.actor
            .contacts()
            .delete_contact(delete)
            .await
            .expect("deleted");
        let mut notices = [mail.next().await, mail.next().await];
        notices.sort_by_key(|mail| mail.to.clone());
        assert_eq!(notices[0].to, ["ann@example.org"]);
        assert!(notices[0].text().contains("removed"), "{notices:?}");
        let (_, undo_removing) = notices[0].link();
        let anonymous = server.anonymous().await;
        revert(&anonymous, &undo_removing["token"])
            .await
            .expect("reverted");
        // Not while the account is held by somebody who looks into it.
        let operator = server.operator().await;
        operator.suspend_user(ann.name()).await.expect("suspended");
        assert_refused(
            revert(&anonymous, &undo_adding["token"]).await,
            Reason::WrongState,
        );
        let resume = pb::ResumeUserRequest {
            name: ann.name().to_owned(),
            ..Default::default()
        };
        operator.users().resume_user(resume).await.expect("resumed");
        revert(&anonymous, &undo_adding["token"]).await.expect("reverted");
        let operator = server.operator().await;
        let contact = operator.get_contact(&own.name).await.expect("back");
        assert!(contact.primary, "as it was");
        assert_refused(operator.get_contact(&added.name).await, Reason::NotFound);
        anonymous
            .sign_in("ann@example.org", &password("ann"))
            .await
            .expect("hers again");
        // The next is too late.
        let ann = server.sign_in("ann").await;
        change_email(&ann.actor, &contact, "new@example.org").await;
        let notice = loop {
            let next = mail.next().await;
            if next.text().contains("asked to replace") {
                break next;
            }
        };
        server.advance_s(7 * 24 * 3600);
        let late = revert(&server.anonymous().await, &notice.link().1["token"]).await;
        assert_refused(late, Reason::InvalidCode);
    }

    async fn nobody_is_flooded_with_messages(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        proven(&mail, &ann, "ann@example.org", &[Login, Recovery]).await;
        let anonymous = server.anonymous().await;
        for typed in ["ann", "nobody"] {
            for _ in 0..5 {
                ask_reset(&anonymous, typed).await.expect("asked");
            }
            assert_refused(ask_reset(&anonymous, typed).await, Reason::Throttled);
        }
        // By her other name nobody is told, but no more arrive.
        for _ in 0..5 {
            ask_reset(&anonymous, "ann@example.org").await.expect("asked");
        }
        let outcomes = settled(&server).await;
        assert_eq!(
            (outcomes["sent"], outcomes["void"], outcomes["dropped"]),
            (1 + 5, 5, 5)
        );
        assert_eq!(mail.mails().len(), 1 + 5);
        // Her address, sent to by many accounts: five of each, and twenty of all.
        let operator = server.operator().await;
        for spelling in ["ann", "Ann", "ANN", "aNN", "anN", "ａｎｎ"] {
            let user = operator
                .create_user(pb::User::default())
                .await
                .expect("created")
                .name;
            let contact = operator
                .create_contact(&user, email(&format!("{spelling}@example.org"), &[]))
                .await;
            let contact = contact.expect("created").name;
            for _ in 0..5 {
                send_code(&operator, &contact).await.expect("asked");
            }
        }
        assert_eq!(settled(&server).await["sent"], 6 + 20, "she has had enough");
        // What she has to know is not held up.
        let user = server.sign_in("ann").await.actor;
        let request = pb::ChangePasswordRequest {
            name: "users/me".to_owned(),
            old_password: password("ann"),
            new_password: "four calm walruses".to_owned(),
            ..Default::default()
        };
        user.credentials()
            .change_password(request)
            .await
            .expect("changed");
        assert_eq!(settled(&server).await["sent"], 6 + 20 + 1);
        // One that arrives at the right person forgives what was asked for.
        server.advance_s(3600);
        let anonymous = server.anonymous().await;
        let asked = ask_code(&anonymous, "ann@example.org", ChallengeMethod::EmailCode).await;
        let asked = asked.expect("asked");
        let code = loop {
            let mail = mail.next().await;
            if mail.header("Subject").contains("code") && mail.link().0.ends_with("sign-in") {
                break mail.code();
            }
        };
        factors::answer(&anonymous, &asked, Answer::Code(code))
            .await
            .expect("signed in");
        for _ in 0..5 {
            ask_code(&anonymous, "ann@example.org", ChallengeMethod::EmailCode)
                .await
                .expect("asked");
        }
        assert_eq!(settled(&server).await["sent"], 6 + 20 + 1 + 1 + 5);
    }

    async fn a_server_that_cannot_take_it_now_is_asked_again(engine: Engine) {
        let (server, mail) = with_mail_and(engine, |config| {
            let file = config.data_dir.join("smtp.password");
            std::fs::write(&file, "hunter2 hunter2\n").expect("written");
            config.smtp.username = Some("accountd".to_owned());
            config.smtp.password_file = Some(file);
        })
        .await;
        let ann = server.signed_in("ann").await.actor;
        let contact = ann
            .create_contact("users/me", email("ann@example.org", &[]))
            .await
            .expect("created")
            .name;
        let tries = |outcome: &str| {
            let tries = outcomes(&server.running);
            tries.get(outcome).copied().unwrap_or(0)
        };
        let manners = [
            Manner::Says("451 later"),
            Manner::IsSilent,
            Manner::IsPlain,
            Manner::Refuses("535 who are you"),
        ];
        for (round, manner) in manners.into_iter().enumerate() {
            mail.behave(manner.clone());
            send_code(&ann, &contact).await.expect("sent");
            let before = tries("later");
            until(|| tries("later") > before).await;
            assert_eq!(mail.mails().len(), round, "{manner:?}");
            mail.behave(Manner::Takes);
            server.advance_s(15);
            let taken = mail.next().await;
            if let Some(refused) = mail.refused().get(round) {
                assert_eq!(
                    refused.header("Message-ID"),
                    taken.header("Message-ID"),
                    "one message"
                );
            }
        }
        assert!(
            mail.logins()
                .iter()
                .all(|login| login == ":accountd:hunter2 hunter2"),
            "{:?}",
            mail.logins()
        );
        // Nobody has told them to a server without TLS.
        assert_eq!(mail.logins().len(), 7, "{:?}", mail.logins());
    }

    async fn a_message_that_nobody_takes_is_dead_until_it_is_sent_again(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await.actor;
        let contact = ann
            .create_contact("users/me", email("ann@example.org", &[]))
            .await
            .expect("created")
            .name;
        mail.behave(Manner::Says("550 no such mailbox"));
        send_code(&ann, &contact).await.expect("sent");
        assert_eq!(settled(&server).await["dead"], 1);
        assert_eq!(server.events("message.dead").await.len(), 1);
        mail.behave(Manner::Takes);
        let redriven = redrive(&server).await;
        assert_eq!(redriven.expect("redriven"), 1);
        let code = mail.next_to("ann@example.org").await.code();
        ann.verify_contact(&contact, &code).await.expect("the same code");
        // One whose code is over stays dead.
        mail.behave(Manner::Says("550 no such mailbox"));
        let other = ann
            .create_contact("users/me", email("b@example.org", &[]))
            .await
            .expect("created")
            .name;
        send_code(&ann, &other).await.expect("sent");
        assert_eq!(settled(&server).await["dead"], 2);
        server.advance_s(24 * 3600);
        let redriven = redrive(&server).await;
        assert_eq!(redriven.expect("nothing to do"), 0);
        server.advance_s(8 * 24 * 3600);
        jobs::sweep(&server.running.app).await.expect("swept");
        let dead = dead::list(Call::system(&server.running.app, "").db())
            .await
            .expect("listed");
        assert!(dead.is_empty(), "{dead:?}");
    }

    async fn a_slow_mail_server_slows_nothing_down(engine: Engine) {
        let (server, mail) = with_mail_and(engine, |config| config.messages.address_free = 100).await;
        mail.behave(Manner::IsSilent);
        let ann = server.signed_in("ann").await.actor;
        let mut contacts = Vec::new();
        for number in 0..20 {
            let contact = email(&format!("ann{number}@example.org"), &[]);
            contacts.push(
                ann.create_contact("users/me", contact)
                    .await
                    .expect("created")
                    .name,
            );
        }
        let begin = std::time::Instant::now();
        for contact in &contacts {
            send_code(&ann, contact).await.expect("sent");
        }
        // Each of them would keep a caller for two seconds.
        assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
        assert!(mail.mails().is_empty());
        mail.behave(Manner::Takes);
        let mut came = std::collections::BTreeSet::new();
        while came.len() < 20 {
            if tokio::time::timeout(Duration::from_secs(3), async {
                came.insert(mail.next().await.to)
            })
            .await
            .is_err()
            {
                server.advance_s(15);
            }
        }
    }

    async fn a_server_that_is_down_is_waited_for_and_a_recipient_it_refuses_is_not(engine: Engine) {
        let (server, mail) = with_mail_and(engine, |config| {
            let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
            // Nobody listens there any more.
            config.smtp.port = listener.local_addr().expect("an address").port();
        })
        .await;
        let ann = server.signed_in("ann").await.actor;
        let contact = ann
            .create_contact("users/me", email("ann@example.org", &[]))
            .await;
        let contact = contact.expect("created").name;
        send_code(&ann, &contact).await.expect("sent");
        let outcome = |name: &str| outcomes(&server.running).contains_key(name);
        until(|| outcome("later")).await;
        assert_eq!(
            messenger::waiting(&server.running.app, true)
                .await
                .expect("counted"),
            1
        );
        assert!(mail.mails().is_empty() && !outcome("dead"));

        let (server, mail) = with_mail(engine).await;
        mail.behave(Manner::RefusesRecipient(
            "550 nobody of this name: ann@example.org",
        ));
        let ann = server.signed_in("ann").await.actor;
        let contact = ann
            .create_contact("users/me", email("ann@example.org", &[]))
            .await;
        let contact = contact.expect("created").name;
        send_code(&ann, &contact).await.expect("sent");
        assert_eq!(settled(&server).await["dead"], 1);
        let call = Call::system(&server.running.app, "");
        let dead = dead::list(call.db()).await.expect("listed");
        assert_eq!(dead[0].error, "the mail server answered 550", "and no address");
    }

    async fn links_lead_where_the_configuration_says_whatever_host_is_called(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        proven(&mail, &ann, "ann@example.org", &[Recovery]).await;
        let body = r#"{"identifier": "ann", "delivery": "SEND"}"#;
        let client = reqwest::Client::new();
        let answer = client
            .post(server.url("/v1/passwordResets"))
            .header("host", "evil.example")
            .header("x-forwarded-host", "evil.example")
            .header("content-type", "application/json")
            .body(body)
            .send()
            .await;
        assert!(answer.expect("an answer").status().is_success());
        let came = mail.next_to("ann@example.org").await;
        assert_eq!(came.link().0, "https://login.example/reset-password");
        assert!(!came.data.contains("evil"), "{came:?}");
    }

    async fn a_notice_outlives_an_outage_of_two_days_and_not_one_of_four(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let contact = proven(&mail, &ann, "ann@example.org", &[Notify]).await;
        mail.behave(Manner::Says("451 later"));
        let changed = async |address: &str| {
            let ann = server.sign_in("ann").await.actor;
            change_email(&ann, &contact, address).await;
        };
        let tried = async |times: u64| {
            until(|| outcomes(&server.running).get("later").copied().unwrap_or(0) >= times).await;
        };
        changed("new@example.org").await;
        tried(1).await;
        for round in 0..16 {
            server.advance_s(3 * 3_600);
            tried(2 + round).await;
        }
        mail.behave(Manner::Takes);
        server.advance_s(3 * 3_600);
        mail.next_to("ann@example.org").await;
        mail.behave(Manner::Says("451 later"));
        changed("newer@example.org").await;
        tried(18).await;
        server.advance_s(73 * 3_600);
        assert_eq!(settled(&server).await["dead"], 1);
        let call = Call::system(&server.running.app, "");
        let dead = dead::list(call.db()).await.expect("listed");
        assert_eq!(
            dead[0].error, "the mail server answered 451",
            "and not only that time was over"
        );
    }

    async fn no_more_go_than_a_minute_may_have(engine: Engine) {
        let (server, mail) = with_mail_and(engine, |config| config.messages.max_per_minute = 1).await;
        let ann = server.signed_in("ann").await.actor;
        for address in ["one@example.org", "two@example.org"] {
            let contact = ann.create_contact("users/me", email(address, &[])).await;
            send_code(&ann, &contact.expect("created").name)
                .await
                .expect("sent");
        }
        mail.next().await;
        // Two turns of the sender.
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(mail.mails().len(), 1);
        assert_eq!(
            messenger::waiting(&server.running.app, true)
                .await
                .expect("counted"),
            1
        );
    }

    async fn of_two_processes_one_sends_each_message(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let second = match engine {
            Engine::Sqlite => None,
            Engine::Postgres => Some(server.second_instance().await),
        };
        let operator = server.operator().await;
        mail.behave(Manner::Says("451 later"));
        for number in 0..60 {
            let user = operator
                .create_user(pb::User::default())
                .await
                .expect("created")
                .name;
            let contact = email(&format!("person-{number}@example.org"), &[]);
            let contact = operator.create_contact(&user, contact).await.expect("created");
            send_code(&operator, &contact.name).await.expect("sent");
        }
        let later = |process: &accountd::server::Server| outcomes(process).get("later").copied().unwrap_or(0);
        until(|| later(&server.running) + second.as_ref().map_or(0, later) >= 60).await;
        mail.behave(Manner::Takes);
        server.advance_s(15);
        settled(&server).await;
        assert_eq!(mail.mails().len(), 60);
        let sent = |process: &accountd::server::Server| outcomes(process).get("sent").copied().unwrap_or(0);
        let by_second = second.as_ref().map_or(0, sent);
        assert_eq!(sent(&server.running) + by_second, 60);
    }

    async fn nobody_writes_to_many_by_contacts_of_their_own(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await.actor;
        let contact = async |number: u32| {
            let address = format!("person-{number}@example.org");
            let contact = ann.create_contact("users/me", email(&address, &[])).await;
            contact.expect("created").name
        };
        for number in 0..5 {
            send_code(&ann, &contact(number).await).await.expect("sent");
            mail.next_to(&format!("person-{number}@example.org")).await;
        }
        let next = contact(5).await;
        assert_refused(send_code(&ann, &next).await, Reason::Throttled);
        // Nor when another goes first.
        let delete = pb::DeleteContactRequest {
            name: next,
            ..Default::default()
        };
        ann.contacts().delete_contact(delete).await.expect("deleted");
        assert_refused(send_code(&ann, &contact(6).await).await, Reason::Throttled);
        settled(&server).await;
        assert_eq!(mail.mails().len(), 5);
    }

    async fn strangers_hold_nobody_up(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        proven(&mail, &ann, "ann@example.org", &[Login]).await;
        let (anonymous, operator) = (server.anonymous().await, server.operator().await);
        // What they type is not what an account is counted by.
        for typed in [format!("contacts of {}", ann.name()), ann.name().to_owned()] {
            while ask_reset(&anonymous, &typed).await.is_ok() {}
        }
        let own = ann
            .actor
            .create_contact("users/me", email("new@example.org", &[]))
            .await;
        send_code(&ann.actor, &own.expect("created").name)
            .await
            .expect("sent");
        mail.next_to("new@example.org").await;
        // A device of hers is known, and gets what she asks for however much strangers ask for.
        while ask_code(&anonymous, "ann", ChallengeMethod::EmailCode)
            .await
            .is_ok()
        {}
        for _ in 0..5 {
            mail.next_to("ann@example.org").await;
        }
        let request = pb::CreateChallengeRequest {
            identifier: "ann".to_owned(),
            method: ChallengeMethod::EmailCode.into(),
            delivery: create_challenge_request::Delivery::Send.into(),
            device: Some(pb::Device {
                token: ann.device_token.clone(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let asked = anonymous.sessions().create_challenge(request).await;
        let code = mail.next_to("ann@example.org").await.code();
        factors::answer(
            &anonymous,
            &asked.expect("asked").into_inner(),
            Answer::Code(code),
        )
        .await
        .expect("signed in");
        // Nor does somebody who has written down another's address.
        let contact_of = async |user: &str| {
            let contact = operator.create_contact(user, email("bob@example.org", &[])).await;
            contact.expect("created").name
        };
        let thief = contact_of(&server.user("thief").await.name).await;
        for _ in 0..5 {
            send_code(&operator, &thief).await.expect("sent");
            mail.next_to("bob@example.org").await;
        }
        let bob = contact_of(&server.user("bob").await.name).await;
        send_code(&operator, &bob).await.expect("sent");
        let code = mail.next_to("bob@example.org").await.code();
        operator.verify_contact(&bob, &code).await.expect("his own");
    }

    async fn notices_that_have_waited_do_not_come_all_together(engine: Engine) {
        let (server, mail) = with_mail_and(engine, |config| config.messages.address_free = 2).await;
        let ann = server.signed_in("ann").await;
        let contact = proven(&mail, &ann, "ann@example.org", &[Notify]).await;
        for number in 0..6 {
            change_email(&ann.actor, &contact, &format!("new{number}@example.org")).await;
        }
        let after = async |sent: u64| {
            let tries = |name: &str| outcomes(&server.running).get(name).copied().unwrap_or(0);
            until(|| tries("sent") >= sent && tries("sent") + tries("later") > 6).await;
            assert_eq!(tries("sent"), sent);
        };
        after(1 + 2).await;
        server.advance_s(61);
        after(1 + 3).await;
        // Two turns of the sender.
        tokio::time::sleep(Duration::from_secs(2)).await;
        after(1 + 3).await;
    }

    async fn whoever_moves_in_tells_nobody_of_it(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let verified = |address: &str| pb::Contact {
            verification: Some(pb::contact::Verification {
                state: pb::contact::verification::State::Verified.into(),
                ..Default::default()
            }),
            ..email(address, &[Login, Recovery, Notify])
        };
        let request = pb::CreateUserRequest {
            contacts: vec![verified("ann@example.org"), verified("ann@example.com")],
            ..Default::default()
        };
        let operator = server.operator().await;
        let user = operator
            .users()
            .create_user(request)
            .await
            .expect("imported")
            .into_inner();
        // What comes later is told.
        operator
            .create_contact(&user.name, verified("ann@example.net"))
            .await
            .expect("created");
        let mut told = [mail.next().await.to, mail.next().await.to].concat();
        told.sort();
        assert_eq!(told, ["ann@example.com", "ann@example.org"]);
        settled(&server).await;
        assert_eq!(mail.mails().len(), 2);
    }

    async fn what_was_sent_to_an_address_is_over_when_it_is_given_up(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let old = proven(&mail, &ann, "old@example.org", &[Login, Recovery]).await;
        let anonymous = server.anonymous().await;
        let asked = ask_code(&anonymous, "old@example.org", ChallengeMethod::EmailCode).await;
        let asked = asked.expect("asked");
        let code = mail.next_to("old@example.org").await.code();
        ask_reset(&anonymous, "old@example.org").await.expect("asked");
        let (_, reset) = mail.next_to("old@example.org").await.link();
        change_email(&ann.actor, &old, "new@example.org").await;
        mail.next_to("old@example.org").await;
        send_code(&ann.actor, &old.name).await.expect("sent");
        let proof = mail.next_to("new@example.org").await.code();
        ann.actor
            .verify_contact(&old.name, &proof)
            .await
            .expect("verified");
        let refused = factors::answer(&anonymous, &asked, Answer::Code(code)).await;
        assert_refused(refused, Reason::ChallengeEnded);
        let refused = credentials::redeem(&anonymous, &reset["code"], "four calm walruses").await;
        assert_refused(refused, Reason::InvalidCode);
    }

    async fn an_address_that_was_replaced_later_comes_back(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let own = proven(&mail, &ann, "ann@example.org", &[Login, Recovery]).await;
        change_email(&ann.actor, &own, "mallory@example.net").await;
        mail.next_to("ann@example.org").await;
        // The first notice is good for a week, and whoever waits longer tells once more.
        server.advance_s(8 * 24 * 3_600);
        let thief = server.sign_in("ann").await;
        send_code(&thief.actor, &own.name).await.expect("sent");
        let code = mail.next_to("mallory@example.net").await.code();
        thief
            .actor
            .verify_contact(&own.name, &code)
            .await
            .expect("verified");
        let notice = mail.next_to("ann@example.org").await;
        assert!(
            notice.text().contains("was replaced by m…@example.net"),
            "{notice:?}"
        );
        revert(&server.anonymous().await, &notice.link().1["token"])
            .await
            .expect("reverted");
        let back = server
            .operator()
            .await
            .get_contact(&own.name)
            .await
            .expect("back");
        assert_eq!((back.value, back.pending_value), (own.value, String::new()));
    }

    async fn an_owner_who_comes_back_is_believed_before_the_thief(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let own = proven(&mail, &ann, "ann@example.org", &[Login, Recovery]).await;
        server.advance_s(60);
        let hers = proven(&mail, &ann, "mallory@example.net", &[Login, Recovery]).await;
        mail.next_to("ann@example.org").await;
        let delete = async |name: &str| {
            let request = pb::DeleteContactRequest {
                name: name.to_owned(),
                ..Default::default()
            };
            ann.actor
                .contacts()
                .delete_contact(request)
                .await
                .expect("deleted");
            let mut told = [mail.next().await, mail.next().await];
            told.sort_by_key(|mail| mail.to.clone());
            told.map(|mail| (mail.to[0].clone(), mail.text().contains("revert-contact#token=")))
        };
        let links = |ann: bool, mallory: bool| {
            [
                ("ann@example.org".to_owned(), ann),
                ("mallory@example.net".to_owned(), mallory),
            ]
        };
        assert_eq!(delete(&own.name).await, links(true, false));
        // She comes by her password, and makes good what was done.
        server.advance_s(60);
        let again = ann
            .actor
            .create_contact("users/me", email("ann@example.org", &[Login, Recovery]))
            .await;
        let again = again.expect("created").name;
        send_code(&ann.actor, &again).await.expect("sent");
        let code = loop {
            let next = mail.next().await;
            if next.text().contains("verify-contact") {
                break next.code();
            }
        };
        ann.actor.verify_contact(&again, &code).await.expect("hers");
        mail.next().await;
        mail.next().await;
        assert_eq!(delete(&hers.name).await, links(true, false));
    }

    async fn a_revert_leaves_nobody_without_a_way_in(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let operator = server.operator().await;
        let ann = server.signed_in("ann").await;
        proven(&mail, &ann, "old@example.org", &[Recovery]).await;
        server.advance_s(1);
        proven(&mail, &ann, "ann@example.org", &[Login]).await;
        let token = mail.next_to("old@example.org").await.link().1["token"].clone();
        let nameless = pb::UpdateUserRequest {
            user: Some(pb::User {
                name: ann.name().to_owned(),
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["username".to_owned()],
            }),
            ..Default::default()
        };
        operator.users().update_user(nameless).await.expect("updated");
        let anonymous = server.anonymous().await;
        assert_refused(revert(&anonymous, &token).await, Reason::LastIdentifier);
        let named = pb::UpdateUserRequest {
            user: Some(pb::User {
                name: ann.name().to_owned(),
                username: "ann".to_owned(),
                ..Default::default()
            }),
            ..Default::default()
        };
        operator.users().update_user(named).await.expect("updated");
        revert(&anonymous, &token).await.expect("reverted");
    }

    async fn who_is_shut_out_while_a_reset_is_sent_gets_none(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        proven(&mail, &ann, "ann@example.org", &[Recovery]).await;
        let mut other = Other::new(&server).await;
        // The sender has looked up where it goes, and counts it for the address, when that is proven no more.
        let unproven = "UPDATE contacts SET proof_method = NULL, proof_time = NULL, proof_by = NULL";
        let is_taken = "messages WHERE kind = 'password_reset' AND attempts > 0";
        other.whenever("throttles", is_taken, unproven).await;
        ask_reset(&server.anonymous().await, "ann").await.expect("asked");
        let outcomes = settled(&server).await;
        assert_eq!((outcomes["later"], outcomes["void"]), (1, 1), "{outcomes:?}");
        assert_eq!(mail.mails().len(), 1, "the code that proved it");
        assert_eq!(other.count("password_resets").await, 0);
    }

    async fn a_purpose_that_is_added_meanwhile_lets_no_manager_in(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.user("ann").await;
        let manager = server.system_account(&["roles/user-manager"]).await;
        let contact = manager
            .create_contact(&ann.name, email("manager@example.org", &[]))
            .await;
        let name = contact.expect("created").name;
        send_code(&manager, &name).await.expect("sent");
        let code = mail.next_to("manager@example.org").await.code();
        // The call has looked at the contact, and waits to be counted, when its purposes change.
        let mut other = Other::new(&server).await;
        other.hold("throttles").await;
        let verify = {
            let (manager, name, code) = (manager.clone(), name.clone(), code.clone());
            tokio::spawn(async move { manager.verify_contact(&name, &code).await })
        };
        tokio::time::sleep(Duration::from_millis(500)).await;
        let purposes = r#"'["login","recovery"]'"#;
        other
            .run(&format!("UPDATE contacts SET purposes = {purposes}; COMMIT"))
            .await;
        assert_refused(verify.await.expect("no panic"), Reason::ScopeMissing);
    }

    async fn messages_to_nobody_hold_nobody_up(engine: Engine) {
        let (server, mail) = with_mail_and(engine, |config| config.messages.max_per_minute = 1).await;
        let anonymous = server.anonymous().await;
        let ann = server.signed_in("ann").await.actor;
        let contact = ann
            .create_contact("users/me", email("ann@example.org", &[]))
            .await;
        for nobody in ["nobody", "nobody@example.org", "not an identifier"] {
            ask_reset(&anonymous, nobody).await.expect("asked");
        }
        send_code(&ann, &contact.expect("created").name)
            .await
            .expect("sent");
        mail.next_to("ann@example.org").await;
    }

    async fn when_too_many_wait_nobody_can_ask_for_more(engine: Engine) {
        let (server, mail) = with_mail_and(engine, |config| config.messages.max_queued = 2).await;
        mail.behave(Manner::Says("451 later"));
        let anonymous = server.anonymous().await;
        let ann = server.signed_in("ann").await.actor;
        for address in ["one@example.org", "two@example.org"] {
            let contact = ann
                .create_contact("users/me", email(address, &[]))
                .await
                .expect("created")
                .name;
            send_code(&ann, &contact).await.expect("sent");
        }
        for round in 0.. {
            match ask_reset(&anonymous, &format!("somebody{round}")).await {
                Ok(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                refused => {
                    assert_refused(refused, Reason::Overloaded);
                    break;
                }
            }
            assert!(round < 100, "never full");
        }
        mail.behave(Manner::Takes);
        server.advance_s(15);
        settled(&server).await;
        while ask_reset(&anonymous, "ann").await.is_err() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn who_looks_after_people_does_not_get_in_as_them(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let manager = server.system_account(&["roles/user-manager"]).await;
        let own = email("manager@example.org", &[Login, Recovery]);
        let own = manager
            .create_contact(ann.name(), own)
            .await
            .expect("created")
            .name;
        send_code(&manager, &own).await.expect("sent");
        let code = mail.next_to("manager@example.org").await.code();
        assert_refused(manager.verify_contact(&own, &code).await, Reason::ScopeMissing);
        let plain = manager
            .create_contact(ann.name(), email("plain@example.org", &[Notify]))
            .await
            .expect("created")
            .name;
        send_code(&manager, &plain).await.expect("sent");
        let code = mail.next_to("plain@example.org").await.code();
        let plain = manager.verify_contact(&plain, &code).await.expect("for notices");
        let request = pb::UpdateContactRequest {
            contact: Some(pb::Contact {
                purposes: vec![Recovery.into()],
                ..plain
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["purposes".to_owned()],
            }),
            ..Default::default()
        };
        let refused = manager.contacts().update_contact(request).await;
        assert_refused(refused, Reason::ScopeMissing);
    }

    async fn all_that_a_thief_did_is_undone_from_the_first_change_on(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let own = proven(&mail, &ann, "ann@example.org", &[Login, Recovery]).await;
        server.advance_s(8 * 24 * 3600);
        let thief = server.sign_in("ann").await;
        let stripped = pb::UpdateContactRequest {
            contact: Some(pb::Contact {
                purposes: vec![Login.into()],
                etag: String::new(),
                ..own.clone()
            }),
            update_mask: Some(prost_types::FieldMask {
                paths: vec!["purposes".to_owned()],
            }),
            ..Default::default()
        };
        thief
            .actor
            .contacts()
            .update_contact(stripped)
            .await
            .expect("updated");
        let (_, first) = mail.next_to("ann@example.org").await.link();
        server.advance_s(1);
        let hers = proven(&mail, &thief, "mallory@example.net", &[Login, Recovery]).await;
        // She is told of that as well, where she was reached before.
        mail.next_to("ann@example.org").await.link();
        server.advance_s(1);
        let delete = pb::DeleteContactRequest {
            name: own.name.clone(),
            ..Default::default()
        };
        thief
            .actor
            .contacts()
            .delete_contact(delete)
            .await
            .expect("deleted");
        let notices = [mail.next().await, mail.next().await];
        for notice in notices {
            let has_link = notice.text().contains("revert-contact#token=adcb_");
            assert_eq!(has_link, notice.to == ["ann@example.org"], "{notice:?}");
        }
        // Put there so that hers could not come back, nor she be told of what follows.
        thief
            .actor
            .create_contact("users/me", email("ann@example.org", &[]))
            .await
            .expect("created");
        server.advance_s(1);
        let more = proven(&mail, &thief, "mallory@example.com", &[Recovery]).await;
        let mut told = [mail.next().await, mail.next().await].map(|notice| notice.to[0].clone());
        told.sort();
        assert_eq!(told, ["ann@example.org", "mallory@example.net"]);
        revert(&server.anonymous().await, &first["token"])
            .await
            .expect("reverted");
        let told = [mail.next().await, mail.next().await, mail.next().await];
        assert!(
            told.iter().any(|notice| notice.to == ["ann@example.org"]),
            "{told:?}"
        );
        let operator = server.operator().await;
        assert_refused(operator.get_contact(&hers.name).await, Reason::NotFound);
        assert_refused(operator.get_contact(&more.name).await, Reason::NotFound);
        let back = operator.get_contact(&own.name).await.expect("back");
        assert_eq!(
            (&back.value, &back.purposes, back.primary),
            (&own.value, &own.purposes, true)
        );
        let list = pb::ListContactsRequest {
            parent: ann.name().to_owned(),
            ..Default::default()
        };
        assert_eq!(
            operator
                .contacts()
                .list_contacts(list)
                .await
                .expect("a list")
                .into_inner()
                .contacts
                .len(),
            1
        );
        server
            .anonymous()
            .await
            .sign_in("ann@example.org", &password("ann"))
            .await
            .expect("hers again");
    }

    async fn nothing_that_people_write_becomes_more_than_text(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        proven(&mail, &ann, "ann@example.org", &[Login, Recovery, Notify]).await;
        let heads: Vec<usize> = mail.mails().iter().map(|mail| mail.headers().len()).collect();
        let names = [
            "Ann</p><script>alert(1)</script>",
            "http://evil.example",
            "{{ code }}",
            "Ann \u{202e}gro",
            "Ann, call +41 900 123 456",
        ];
        for (round, display_name) in names.into_iter().enumerate() {
            let user = pb::User {
                name: "users/me".to_owned(),
                display_name: display_name.to_owned(),
                ..Default::default()
            };
            let request = pb::UpdateUserRequest {
                user: Some(user),
                ..Default::default()
            };
            ann.actor.users().update_user(request).await.expect("updated");
            server.advance_s(20);
            let request = pb::ChangePasswordRequest {
                name: "users/me".to_owned(),
                old_password: if round == 0 {
                    password("ann")
                } else {
                    format!("four calm walruses {}", round - 1)
                },
                new_password: format!("four calm walruses {round}"),
                ..Default::default()
            };
            ann.actor
                .credentials()
                .change_password(request)
                .await
                .expect("changed");
            let came = mail.next_to("ann@example.org").await;
            assert_eq!(came.headers().len(), heads[0], "{came:?}");
            for part in [came.text(), came.part("text/html")] {
                assert!(
                    !part.contains("<script") && !part.contains("evil.example") && !part.contains("900"),
                    "{part}"
                );
                assert!(!part.contains("{{"), "{part}");
            }
        }
        for address in [
            "ann@example.org\r\nBcc: eve@example.net",
            "ann@example.org>\r\nRCPT TO:<eve@example.net",
            "ann@example.org, eve@example.net",
            "eve@example.net\n.\nMAIL FROM:<x@y.z>",
        ] {
            let refused = ann.actor.create_contact("users/me", email(address, &[])).await;
            assert_eq!(refused.outcome(), "INVALID_ARGUMENT INVALID_FIELD", "{address:?}");
        }
    }

    async fn mail_servers_that_speak_tls_from_the_first_byte_are_spoken_to(engine: Engine) {
        let authority = Authority::new("mail");
        let mail = MailServer::new(&authority, true).await;
        let server = engine.server_with(|config| {
            mail.is_used(config, &authority);
            "tls".clone_into(&mut config.smtp.security);
        });
        let server = server.await;
        let ann = server.signed_in("ann").await;
        proven(&mail, &ann, "ann@example.org", &[Login]).await;
        // Somebody else's certificate is not believed.
        let other = MailServer::new(&Authority::new("other"), true).await;
        let server = engine.server_with(|config| {
            mail.is_used(config, &authority);
            "tls".clone_into(&mut config.smtp.security);
            config.smtp.port = other.address.port();
        });
        let server = server.await;
        let ann = server.signed_in("ann").await.actor;
        let contact = ann
            .create_contact("users/me", email("ann@example.org", &[]))
            .await
            .expect("created")
            .name;
        send_code(&ann, &contact).await.expect("sent");
        while server
            .running
            .app
            .metrics
            .encode()
            .expect("metrics")
            .lines()
            .all(|line| !line.contains("\"later\""))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(other.mails().is_empty());
    }

    async fn people_are_written_to_in_their_language(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let user = pb::User {
            name: "users/me".to_owned(),
            language_code: "de-CH".to_owned(),
            display_name: "Ann Müller".to_owned(),
            ..Default::default()
        };
        let request = pb::UpdateUserRequest {
            user: Some(user),
            ..Default::default()
        };
        ann.actor.users().update_user(request).await.expect("updated");
        proven(&mail, &ann, "ann@example.org", &[Recovery]).await;
        ask_reset(&server.anonymous().await, "ann").await.expect("asked");
        let came = mail.next_to("ann@example.org").await;
        assert!(
            came.text().starts_with("Hallo Ann Müller,") || came.text().starts_with("Hallo Ann Müller"),
            "{}",
            came.text()
        );
        assert!(
            came.part("text/html").contains("<html lang=\"de\">"),
            "{}",
            came.part("text/html")
        );
    }

    async fn what_is_only_tried_out_sends_nothing(engine: Engine) {
        let (server, mail) = with_mail(engine).await;
        let ann = server.signed_in("ann").await;
        let own = proven(&mail, &ann, "ann@example.org", &[Login, Recovery]).await;
        let request = pb::CreatePasswordResetRequest {
            account: Some(reset::Account::Identifier("ann".to_owned())),
            delivery: reset::Delivery::Send.into(),
            validate_only: true,
            ..Default::default()
        };
        ann.actor
            .credentials()
            .create_password_reset(request)
            .await
            .expect("would do");
        let request = pb::DeleteContactRequest {
            name: own.name.clone(),
            validate_only: true,
            ..Default::default()
        };
        ann.actor
            .contacts()
            .delete_contact(request)
            .await
            .expect("would do");
        let request_id = uuid::Uuid::from_u128(9).to_string();
        let request = pb::CreatePasswordResetRequest {
            account: Some(reset::Account::Name("users/me".to_owned())),
            delivery: reset::Delivery::Send.into(),
            request_id,
            ..Default::default()
        };
        for _ in 0..3 {
            ann.actor
                .credentials()
                .create_password_reset(request.clone())
                .await
                .expect("once");
        }
        mail.next_to("ann@example.org").await;
        settled(&server).await;
        assert_eq!(mail.mails().len(), 2);
    }
}

/// The program itself, killed in the middle.
mod crash {
    use std::collections::{BTreeMap, BTreeSet};

    use super::*;
    use crate::process::Installation;

    const MESSAGES: usize = 500;

    #[tokio::test]
    async fn operators_see_what_a_message_looks_like() {
        let installation = Installation::new(Engine::Sqlite).await;
        let preview = |arguments: &[&str]| {
            let arguments = [&["message", "preview", "--kind", "sign_in_code"], arguments].concat();
            let (status, text, _) = installation.run(&arguments);
            assert!(status.success(), "{text}");
            text
        };
        assert!(preview(&[]).starts_with("Subject: Your code for accountd: 1234 5678\n"));
        assert!(preview(&["--language", "de-CH"]).starts_with("Subject: Ihr Code für accountd"));
        assert!(preview(&["--part", "html"]).starts_with("<!doctype html>"));
        assert!(preview(&["--part", "sms"]).starts_with("1234 5678 is your code"));
        let (status, _, error) = installation.run(&["message", "preview", "--kind", "birthday"]);
        assert!(
            !status.success() && error.contains("contact_code"),
            "{error}"
        );
    }

    on_both_engines! {
        async fn every_message_arrives_and_none_under_two_ids(engine: Engine) {
            let authority = Authority::new("mail");
            let mail = MailServer::new(&authority, false).await;
            let installation = Installation::new(engine).await;
            let ca_file = installation.folder.path().join("mail.pem");
            std::fs::write(&ca_file, authority.pem()).expect("written");
            let (ca_file, port) = (ca_file.display().to_string(), mail.address.port().to_string());
            let variables = [
                ("ACCOUNTD_MESSAGES__EMAIL", "smtp"),
                ("ACCOUNTD_MESSAGES__ADDRESS_FREE", "1000"),
                ("ACCOUNTD_MESSAGES__LEASE_S", "4"),
                ("ACCOUNTD_MESSAGES__MAX_PER_MINUTE", "60000"),
                ("ACCOUNTD_SMTP__HOST", "localhost"),
                ("ACCOUNTD_SMTP__PORT", &port),
                ("ACCOUNTD_SMTP__CA_FILE", &ca_file),
                ("ACCOUNTD_SMTP__FROM", "no-reply@id.example"),
                ("ACCOUNTD_SMTP__TIMEOUT_S", "3"),
                ("ACCOUNTD_PUBLIC_URL", "https://id.example"),
            ];
            let process = installation.serve(&variables);
            let operator = installation.bootstrap(&process).await;
            let mut wanted = BTreeSet::new();
            for user in 0..MESSAGES / 50 {
                let user = operator.create_user(pb::User {
                    username: format!("user{user}"),
                    ..Default::default()
                });
                let user = user.await.expect("created").name;
                for number in 0..50 {
                    let address = format!("a{number}@{}.example", &user[6..]);
                    let contact = operator
                        .create_contact(&user, email(&address, &[]))
                        .await
                        .expect("created");
                    send_code(&operator, &contact.name).await.expect("sent");
                    wanted.insert(address);
                }
            }
            while mail.mails().len() < MESSAGES / 4 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            process.kill();
            let before = mail.mails().len();
            let process = installation.serve(&variables);
            let mut ids: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
            while ids.len() < MESSAGES {
                mail.next().await;
                for mail in mail.mails() {
                    ids.entry(mail.to[0].clone())
                        .or_default()
                        .insert(mail.header("Message-ID"));
                }
            }
            assert!(mail.mails().len() >= MESSAGES);
            assert!(before < MESSAGES, "killed in the middle, after {before}");
            assert!(ids.values().all(|ids| ids.len() == 1), "{ids:#?}");
            assert_eq!(ids.into_keys().collect::<BTreeSet<_>>(), wanted);
            process.kill();
            let (status, text, _) = installation.run(&["message", "list"]);
            assert_eq!((status.success(), &*text), (true, ""));
            let (status, text, _) = installation.run(&["message", "redrive"]);
            assert_eq!(
                (status.success(), &*text),
                (true, "0 messages wait to be sent again\n")
            );
        }
    }
}

/// A gateway is told in JSON, signed, under one id however often.
mod webhook {
    use aws_lc_rs::hmac;
    use data_encoding::BASE64;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    /// Requests as they came, and what is answered to the next.
    struct Gateway {
        port: u16,
        requests: Arc<tokio::sync::Mutex<tokio::sync::mpsc::UnboundedReceiver<String>>>,
        status: Arc<std::sync::Mutex<&'static str>>,
    }

    impl Gateway {
        async fn new() -> Self {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a port");
            let port = listener.local_addr().expect("an address").port();
            let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
            let status = Arc::new(std::sync::Mutex::new("200 OK"));
            let answer = Arc::clone(&status);
            tokio::spawn(async move {
                while let Ok((mut stream, _)) = listener.accept().await {
                    let mut request = Vec::new();
                    let mut buffer = [0; 4096];
                    loop {
                        let count = stream.read(&mut buffer).await.unwrap_or(0);
                        request.extend_from_slice(&buffer[..count]);
                        let text = String::from_utf8_lossy(&request).into_owned();
                        let Some((head, body)) = text.split_once("\r\n\r\n") else {
                            continue;
                        };
                        let length = head
                            .lines()
                            .find_map(|line| line.strip_prefix("content-length: "));
                        let length: usize = length.expect("a length").parse().expect("a number");
                        if body.len() >= length || count == 0 {
                            break;
                        }
                    }
                    let status = *answer.lock().expect("not poisoned");
                    let text = format!(
                        "HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                    );
                    let _ = stream.write_all(text.as_bytes()).await;
                    let _ = sender.send(String::from_utf8(request).expect("UTF-8"));
                }
            });
            Self {
                port,
                requests: Arc::new(tokio::sync::Mutex::new(receiver)),
                status,
            }
        }

        /// The next request, whose signature is right: its id and its body.
        async fn next(&self) -> (String, serde_json::Value) {
            let next = async { self.requests.lock().await.recv().await };
            let request = tokio::time::timeout(Duration::from_mins(1), next).await;
            let request = request.expect("in time").expect("a request");
            let (head, body) = request.split_once("\r\n\r\n").expect("a head");
            let header = |name: &str| {
                let line = head
                    .lines()
                    .find_map(|line| line.strip_prefix(&format!("{name}: ")));
                line.unwrap_or_else(|| panic!("{name} in {head}"))
                    .to_owned()
            };
            let (id, time) = (header("webhook-id"), header("webhook-timestamp"));
            let signature = header("webhook-signature");
            let tag = BASE64
                .decode(signature.strip_prefix("v1,").expect("v1").as_bytes())
                .expect("base64");
            let key = hmac::Key::new(hmac::HMAC_SHA256, &SECRET);
            hmac::verify(&key, format!("{id}.{time}.{body}").as_bytes(), &tag).expect("signed");
            (id, serde_json::from_str(body).expect("JSON"))
        }
    }

    on_both_engines! {
        async fn a_gateway_is_told_under_one_id_and_with_a_signature(engine: Engine) {
            let gateway = Gateway::new().await;
            let server = engine.server_with(|config| {
                std::fs::create_dir_all(&config.data_dir).expect("a folder");
                let file = config.data_dir.join("webhook.secret");
                std::fs::write(&file, format!("whsec_{}\n", BASE64.encode(&SECRET))).expect("written");
                config.messages.sms = Some("webhook".to_owned());
                config.webhook.url = Some(format!("http://127.0.0.1:{}/sms?key=x", gateway.port));
                config.webhook.secret_file = Some(file);
                config.webhook.timeout_s = 2;
            });
            let server = server.await;
            let ann = server.signed_in("ann").await.actor;
            let mail = ann
                .create_contact("users/me", email("ann@example.org", &[]))
                .await
                .expect("created");
            assert_refused(send_code(&ann, &mail.name).await, Reason::DeliveryUnavailable);
            let number = ann
                .create_contact("users/me", phone("+41 44 668 18 00", &[Login]))
                .await
                .expect("created");
            *gateway.status.lock().expect("not poisoned") = "503 Busy";
            send_code(&ann, &number.name).await.expect("sent");
            let (first, _) = gateway.next().await;
            *gateway.status.lock().expect("not poisoned") = "202 Accepted";
            while server
                .running
                .app
                .metrics
                .encode()
                .expect("metrics")
                .lines()
                .all(|line| !line.contains("\"later\""))
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            server.advance_s(15);
            let (second, body) = gateway.next().await;
            assert_eq!(first, second);
            assert_eq!(
                (&body["type"], &body["channel"], &body["to"]),
                (&"contact_code".into(), &"sms".into(), &"+41446681800".into())
            );
            let text = body["content"]["text"].as_str().expect("text");
            let code: String = text.chars().filter(char::is_ascii_digit).take(8).collect();
            ann.verify_contact(&number.name, &code).await.expect("verified");
            let anonymous = server.anonymous().await;
            let asked = ask_code(&anonymous, "+41446681800", ChallengeMethod::SmsCode)
                .await
                .expect("asked");
            let (_, body) = gateway.next().await;
            let text = body["content"]["text"].as_str().expect("text");
            let code: String = text.chars().filter(char::is_ascii_digit).take(8).collect();
            factors::answer(&anonymous, &asked, Answer::Code(code))
                .await
                .expect("signed in");
            *gateway.status.lock().expect("not poisoned") = "400 Bad Request";
            ask_code(&anonymous, "ann", ChallengeMethod::SmsCode)
                .await
                .expect("asked");
            gateway.next().await;
            assert_eq!(settled(&server).await["dead"], 1);
        }
    }
}

/// The same without any sender.
mod without {
    use super::*;

    on_both_engines! {
        async fn who_can_send_nothing_says_so_to_everybody(engine: Engine) {
            let server = engine.server().await;
            let ann = server.signed_in("ann").await;
            contacts::verified(&server, &ann, email("ann@example.org", &[Login, Recovery])).await;
            let anonymous = server.anonymous().await;
            for typed in ["ann", "nobody"] {
                assert_refused(ask_reset(&anonymous, typed).await, Reason::DeliveryUnavailable);
                let asked = ask_code(&anonymous, typed, ChallengeMethod::EmailCode).await;
                assert_refused(asked, Reason::DeliveryUnavailable);
            }
        }
    }
}
