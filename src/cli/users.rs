//! Flags of the users of remote clusters, the same for `clustermesh` and `serve`.

use super::flags::boolean;
use clap::{ArgAction, Args};
use std::path::PathBuf;

/// Who else may connect.
#[derive(Args, Debug)]
pub struct UserArgs {
    /// Keep the etcd users of remote clusters as a file lists them
    #[arg(long, env = "CILIUM_CLUSTER_USERS_ENABLED", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    cluster_users_enabled: bool,
    /// The file that lists them
    #[arg(
        long,
        env = "CILIUM_CLUSTER_USERS_CONFIG_PATH",
        default_value = "/var/lib/cilium/etcd-config/users.yaml",
        value_name = "FILE"
    )]
    cluster_users_config_path: PathBuf,
}

impl UserArgs {
    /// The file to follow, if any.
    pub fn path(&self) -> Option<PathBuf> {
        self.cluster_users_enabled
            .then(|| self.cluster_users_config_path.clone())
    }
}
