//! The scope file as it is written. Unknown fields are mistakes; what a field may contain, the parser checks.

use crate::model::keys::Scope as KeyKind;
use crate::scope::file::kind_name;
use serde::{Deserialize, Deserializer};
use std::collections::BTreeMap;

/// The file as it is written.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct File {
    pub(super) api_version: String,
    pub(super) kind: String,
    pub(super) region: Option<String>,
    #[serde(default)]
    pub(super) export: ExportSection,
    #[serde(default)]
    pub(super) import: ImportSection,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ExportSection {
    pub(super) endpoints: List<ExportedEndpoints>,
    pub(super) identities: IdentitiesField,
    pub(super) services: List<ExportedObjects>,
    pub(super) service_exports: List<ExportedObjects>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct ImportSection {
    pub(super) regions: BTreeMap<String, String>,
    pub(super) clusters: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) clusters: Option<Vec<String>>,
    pub(super) regions: Option<Vec<String>>,
    pub(super) kinds: Option<Vec<KindField>>,
    #[serde(default)]
    pub(super) endpoints: List<ImportedEndpoints>,
    #[serde(default)]
    pub(super) identities: IdentitiesField,
    #[serde(default)]
    pub(super) services: List<ImportedObjects>,
    #[serde(default)]
    pub(super) service_exports: List<ImportedObjects>,
    #[serde(default)]
    pub(super) limits: BTreeMap<KindField, u64>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, bound = "R: Deserialize<'de>")]
pub(super) struct List<R> {
    #[serde(default)]
    pub(super) default: ActionField,
    #[serde(default = "Vec::new")]
    pub(super) rules: Vec<R>,
}

impl<R> Default for List<R> {
    fn default() -> Self {
        Self {
            default: ActionField::default(),
            rules: vec![],
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExportedEndpoints {
    pub(super) name: String,
    pub(super) action: ActionField,
    pub(super) namespaces: Option<ExportedNamespaces>,
    pub(super) identity: Option<SelectorField>,
    pub(super) backends_of_global_services: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExportedObjects {
    pub(super) name: String,
    pub(super) action: ActionField,
    pub(super) namespaces: Option<ExportedNamespaces>,
    pub(super) labels: Option<SelectorField>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ImportedEndpoints {
    pub(super) name: String,
    pub(super) action: ActionField,
    pub(super) namespaces: Option<ImportedNamespaces>,
    pub(super) identity: Option<SelectorField>,
    pub(super) backends_of_services: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ImportedObjects {
    pub(super) name: String,
    pub(super) action: ActionField,
    pub(super) namespaces: Option<ImportedNamespaces>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ExportedNamespaces {
    pub(super) names: Option<Vec<String>>,
    pub(super) labels: Option<SelectorField>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct ImportedNamespaces {
    pub(super) names: Option<Vec<String>>,
    pub(super) existing: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct SelectorField {
    #[serde(default)]
    pub(super) match_labels: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) match_expressions: Vec<Expression>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Expression {
    pub(super) key: String,
    pub(super) operator: OperatorField,
    #[serde(default)]
    pub(super) values: Vec<String>,
}

#[derive(Clone, Copy, Debug, Deserialize)]
pub(super) enum OperatorField {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum ActionField {
    #[default]
    Include,
    Exclude,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum IdentitiesField {
    #[default]
    All,
    Used,
}

/// A kind of keys by its name in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct KindField(pub(super) KeyKind);

impl<'de> Deserialize<'de> for KindField {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        let known = KeyKind::ALL.into_iter().find(|kind| kind_name(*kind) == name);
        known.map(Self).ok_or_else(|| {
            let names = KeyKind::ALL.map(|kind| format!("`{}`", kind_name(kind))).join(", ");
            serde::de::Error::custom(format!("unknown kind `{name}`, expected one of {names}"))
        })
    }
}
