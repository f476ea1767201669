//! Migrations that were others once, in builds from the main line: what brings a database that has the
//! earlier form to what it would be now. No more of them: a migration that was built is never edited.

use data_encoding::HEXLOWER;

/// A migration in its earlier form.
pub struct Earlier {
    pub version: i64,
    /// SHA-384 of its file for SQLite and for PostgreSQL, in hexadecimal.
    pub checksums: [&'static str; 2],
    /// The same for both engines.
    pub script: &'static str,
}

pub const EARLIER: [Earlier; 2] = [
    Earlier {
        version: 7,
        checksums: [
            "90f0ca8bfe4c7676922372fe533c2508393c66b91c7d1224dc586b09f7681f92d7d08bb5a69e41d73f0c6cb581a65aa1",
            "477404714254d9babc300115cf56c7d9325c18aefadacf7f08d498dc2cc1149d2c8a91c7f85cfc75aeeb4bfe37c1004f",
        ],
        script: include_str!("../../migrations/earlier/0007_credential_lifecycle.sql"),
    },
    Earlier {
        version: 8,
        checksums: [
            "78025ac278b8443d3e922822f254487b30eeec20c969ff809f80ebf7d8f03e3ece6ebd5400ba125658761ab47cd27def",
            "ad14e658ac956abda1e70b64f8f5ce54457611cc65d140a359be47a46bcbdf8824a7a9ece846046a8947b25668659e3a",
        ],
        script: include_str!("../../migrations/earlier/0008_factors.sql"),
    },
];

/// What has to be run where this is what was applied.
pub(super) fn script(version: i64, checksum: &[u8]) -> Option<&'static str> {
    let found = HEXLOWER.encode(checksum);
    let is_it = |it: &&Earlier| it.version == version && it.checksums.contains(&&*found);
    EARLIER.iter().find(is_it).map(|it| it.script)
}
