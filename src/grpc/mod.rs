//! The wire: what arrives as protobuf, what leaves as protobuf, and the order of steps between.
//!
//! Every handler reads alike: enter (who calls, may they), parse (all violations at once), think
//! (decide, hash), one transaction (state, event, record for retries), answer.
//! Invariant: tonic, prost and the generated code are named in this folder and in `server`, nowhere
//! else.

mod access;
mod accounts;
mod answers;
pub mod body;
pub mod call;
mod challenges;
mod changes;
mod consent;
mod contact_changes;
mod contact_codes;
mod contact_fields;
mod contacts;
mod convert;
mod credentials;
mod elevations;
mod entitlements;
mod events;
mod factors;
mod giving;
mod grants;
mod groups;
pub mod inward;
mod keys;
pub mod layer;
mod messages;
mod mint;
mod passwords;
mod principals;
mod program_credentials;
mod reach;
mod roles;
mod scopes;
mod seals;
mod secrets;
mod sessions;
mod sign_in;
pub mod status;
mod system_accounts;
mod tokens;
mod user_fields;
mod user_query;
mod users;

use std::sync::Arc;

use tonic::service::Routes;

use crate::app::App;

/// The generated messages, clients and servers of `proto/accountd/v1`.
#[expect(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod pb {
    use super::call::{Answer, Inbound};

    tonic::include_proto!("accountd.v1");
    include!(concat!(env!("OUT_DIR"), "/messages.rs"));
}

/// The descriptors of everything in `proto/`, with comments and options.
pub static DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

type Reply<T> = Result<tonic::Response<T>, tonic::Status>;

/// Every service of ours, on one screen.
pub fn services(app: &Arc<App>) -> Routes {
    use pb::{
        change_service_server::ChangeServiceServer, contact_service_server::ContactServiceServer,
        credential_service_server::CredentialServiceServer,
        elevation_service_server::ElevationServiceServer, event_service_server::EventServiceServer,
        grant_service_server::GrantServiceServer, group_service_server::GroupServiceServer,
        key_service_server::KeyServiceServer, role_service_server::RoleServiceServer,
        scope_service_server::ScopeServiceServer, session_service_server::SessionServiceServer,
        system_account_service_server::SystemAccountServiceServer,
        token_service_server::TokenServiceServer, user_service_server::UserServiceServer,
    };
    let max = app.config.limits.max_message_bytes;
    let app = || Arc::clone(app);
    let mut routes = Routes::builder();
    routes
        .add_service(
            UserServiceServer::new(users::Users { app: app() }).max_decoding_message_size(max),
        )
        .add_service(
            SystemAccountServiceServer::new(system_accounts::SystemAccounts { app: app() })
                .max_decoding_message_size(max),
        )
        .add_service(
            ContactServiceServer::new(contacts::Contacts { app: app() })
                .max_decoding_message_size(max),
        )
        .add_service(
            CredentialServiceServer::new(credentials::Credentials { app: app() })
                .max_decoding_message_size(max),
        )
        .add_service(
            SessionServiceServer::new(sessions::Sessions { app: app() })
                .max_decoding_message_size(max),
        )
        .add_service(
            TokenServiceServer::new(tokens::Tokens { app: app() }).max_decoding_message_size(max),
        )
        .add_service(
            KeyServiceServer::new(keys::Keys { app: app() }).max_decoding_message_size(max),
        )
        .add_service(
            ScopeServiceServer::new(scopes::Scopes { app: app() }).max_decoding_message_size(max),
        )
        .add_service(
            RoleServiceServer::new(roles::Roles { app: app() }).max_decoding_message_size(max),
        )
        .add_service(
            GroupServiceServer::new(groups::Groups { app: app() }).max_decoding_message_size(max),
        )
        .add_service(
            GrantServiceServer::new(grants::Grants { app: app() }).max_decoding_message_size(max),
        )
        .add_service(
            ElevationServiceServer::new(elevations::Elevations { app: app() })
                .max_decoding_message_size(max),
        )
        .add_service(
            ChangeServiceServer::new(changes::Changes { app: app() })
                .max_decoding_message_size(max),
        )
        .add_service(
            EventServiceServer::new(events::Events { app: app() }).max_decoding_message_size(max),
        );
    routes.routes()
}
