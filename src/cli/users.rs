//! Flags of the etcd users of remote clusters, shared by `clustermesh` and `serve`.

use super::flags::boolean;
use clap::{ArgAction, Args};
use std::path::PathBuf;

/// The etcd users of remote clusters.
#[derive(Args, Debug)]
#[command(next_help_heading = "Users of remote clusters")]
pub struct UserArgs {
    /// Add and remove etcd users of remote clusters as the file of --cluster-users-config-path lists them.
    #[arg(long, env = "CILIUM_CLUSTER_USERS_ENABLED", num_args = 0..=1, require_equals = true,
          default_missing_value = "true", default_value = "false", value_parser = boolean, action = ArgAction::Set)]
    cluster_users_enabled: bool,
    /// YAML file that lists the etcd users of remote clusters and their roles. Changes are followed.
    #[arg(
        long,
        env = "CILIUM_CLUSTER_USERS_CONFIG_PATH",
        default_value = "/var/lib/cilium/etcd-config/users.yaml",
        value_name = "FILE"
    )]
    cluster_users_config_path: PathBuf,
}

impl UserArgs {
    /// The users file, if users are managed.
    pub fn path(&self) -> Option<PathBuf> {
        self.cluster_users_enabled
            .then(|| self.cluster_users_config_path.clone())
    }
}
