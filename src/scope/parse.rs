//! Reads a scope file. Unknown fields are mistakes, and each mistake is told with its path in the file.

mod written;

use super::file::{ClusterRules, Export, Identities, Import, ScopeFile};
use super::glob::Glob;
use super::rules::{Action, Namespaces, RULES_MAX, Rule, Rules};
use super::selector::{Operator, Requirement, Selector};
use crate::model::keys::Scope as KeyKind;
use crate::util::yaml::first_line;
use std::collections::BTreeSet;
use std::fmt;
use written::{
    ActionField, Entry, ExportSection, ExportedEndpoints, ExportedNamespaces, ExportedObjects, File, IdentitiesField,
    ImportSection, ImportedEndpoints, ImportedNamespaces, ImportedObjects, List, OperatorField, SelectorField,
};

pub(super) const API_VERSION: &str = "scope.isthmus.io/v1";
pub(super) const KIND: &str = "Scope";

/// A mistake in a scope file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}{problem}")]
pub struct Mistake {
    place: Place,
    problem: String,
}

/// The path of a field, such as `export.endpoints.rules[2].name`; empty for the whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place(String);

type Checked<T> = Result<T, Mistake>;

impl ScopeFile {
    /// Reads a scope file; the error names the place of the mistake and what to do.
    pub fn parse(content: &[u8]) -> Result<Self, Mistake> {
        let whole = Place::default();
        let text = std::str::from_utf8(content).map_err(|e| whole.problem(format!("the file is not UTF-8: {e}")))?;
        let value: serde_json::Value =
            serde_saphyr::from_str(text).map_err(|e| whole.problem(first_line(&e.to_string())))?;
        if !value.is_object() {
            let problem =
                format!("the file is empty or is no mapping; it must have apiVersion: {API_VERSION} and kind: {KIND}");
            return Err(whole.problem(problem));
        }
        let file: File = serde_path_to_error::deserialize(value).map_err(|error| {
            let path = error.path().to_string();
            let place = Place(if path == "." { String::new() } else { path });
            place.problem(error.into_inner().to_string())
        })?;
        file.check()
    }
}

impl File {
    fn check(self) -> Checked<ScopeFile> {
        let whole = Place::default();
        if self.api_version != API_VERSION {
            let problem = format!("{:?} is not known; this version reads {API_VERSION}", self.api_version);
            return Err(whole.field("apiVersion").problem(problem));
        }
        if self.kind != KIND {
            return Err(whole.field("kind").problem(format!("{:?} must be {KIND}", self.kind)));
        }
        let place = whole.field("region");
        let region = self.region.map(|region| self::region(region, &place)).transpose()?;
        let export = self.export.check(&whole.field("export"))?;
        let import = self.import.check(&whole.field("import"))?;
        Ok(ScopeFile { region, export, import })
    }
}

impl ExportSection {
    fn check(self, place: &Place) -> Checked<Export> {
        Ok(Export {
            endpoints: self.endpoints.check(&place.field("endpoints"))?,
            identities: self.identities.into(),
            services: self.services.check(&place.field("services"))?,
            service_exports: self.service_exports.check(&place.field("serviceExports"))?,
        })
    }
}

impl ImportSection {
    fn check(self, place: &Place) -> Checked<Import> {
        let mut regions = vec![];
        for (cluster, region) in self.regions {
            let place = place.field("regions").field(&cluster);
            regions.push((name_pattern(&cluster, &place)?, self::region(region, &place)?));
        }
        let (mut clusters, mut names) = (vec![], BTreeSet::new());
        for (at, entry) in self.clusters.into_iter().enumerate() {
            let place = place.field("clusters").item(at);
            unique(&mut names, &entry.name, &place)?;
            clusters.push(entry.check(&place)?);
        }
        Ok(Import::new(regions, clusters))
    }
}

impl Entry {
    fn check(self, place: &Place) -> Checked<ClusterRules> {
        if self.clusters.is_none() && self.regions.is_none() {
            let problem = "the entry names no clusters; give clusters: [\"*\"] for all, or regions";
            return Err(place.problem(problem.to_owned()));
        }
        let mut regions = vec![];
        let given = non_empty(self.regions, &place.field("regions"))?;
        for (at, region) in given.into_iter().flatten().enumerate() {
            regions.push(self::region(region, &place.field("regions").item(at))?);
        }
        let kinds = self.kinds.map(|kinds| kinds.into_iter().map(|kind| kind.0).collect());
        Ok(ClusterRules {
            name: self.name,
            clusters: patterns(self.clusters, &place.field("clusters"))?.unwrap_or_default(),
            regions,
            kinds: kinds.unwrap_or_else(|| KeyKind::ALL.into()),
            endpoints: self.endpoints.check(&place.field("endpoints"))?,
            identities: self.identities.into(),
            services: self.services.check(&place.field("services"))?,
            service_exports: self.service_exports.check(&place.field("serviceExports"))?,
            limits: self.limits.into_iter().map(|(kind, keys)| (kind.0, keys)).collect(),
        })
    }
}

/// A rule as it is written.
trait RuleField {
    fn check(self, place: &Place) -> Checked<Rule>;
}

impl<R: RuleField> List<R> {
    fn check(self, place: &Place) -> Checked<Rules> {
        let place = place.field("rules");
        if self.rules.len() > RULES_MAX {
            let problem = format!(
                "{} rules are more than {RULES_MAX}; give a rule several names, or a selector",
                self.rules.len()
            );
            return Err(place.problem(problem));
        }
        let (mut rules, mut names) = (vec![], BTreeSet::new());
        for (at, rule) in self.rules.into_iter().enumerate() {
            let place = place.item(at);
            let rule = rule.check(&place)?;
            unique(&mut names, &rule.name, &place)?;
            if !rule.has_condition() {
                let problem = "the rule has no condition and would match everything; give a condition, or set default";
                return Err(place.problem(problem.to_owned()));
            }
            rules.push(rule);
        }
        Ok(Rules::new(self.default.into(), rules))
    }
}

impl Rule {
    fn has_condition(&self) -> bool {
        let namespaces = self.namespaces.as_ref();
        namespaces.is_some_and(|n| n.names.is_some() || n.labels.is_some() || n.existing.is_some())
            || self.identity.is_some()
            || self.labels.is_some()
            || self.backends.is_some()
    }
}

impl RuleField for ExportedEndpoints {
    fn check(self, place: &Place) -> Checked<Rule> {
        Ok(Rule {
            name: self.name,
            action: self.action.into(),
            namespaces: exported(self.namespaces, place)?,
            identity: selector(self.identity, Sources::Allowed, &place.field("identity"))?,
            labels: None,
            backends: self.backends_of_global_services,
        })
    }
}

impl RuleField for ExportedObjects {
    fn check(self, place: &Place) -> Checked<Rule> {
        Ok(Rule {
            name: self.name,
            action: self.action.into(),
            namespaces: exported(self.namespaces, place)?,
            identity: None,
            labels: selector(self.labels, Sources::Refused, &place.field("labels"))?,
            backends: None,
        })
    }
}

impl RuleField for ImportedEndpoints {
    fn check(self, place: &Place) -> Checked<Rule> {
        Ok(Rule {
            name: self.name,
            action: self.action.into(),
            namespaces: imported(self.namespaces, place)?,
            identity: selector(self.identity, Sources::Allowed, &place.field("identity"))?,
            labels: None,
            backends: self.backends_of_services,
        })
    }
}

impl RuleField for ImportedObjects {
    fn check(self, place: &Place) -> Checked<Rule> {
        Ok(Rule {
            name: self.name,
            action: self.action.into(),
            namespaces: imported(self.namespaces, place)?,
            identity: None,
            labels: None,
            backends: None,
        })
    }
}

fn exported(namespaces: Option<ExportedNamespaces>, place: &Place) -> Checked<Option<Namespaces>> {
    let place = place.field("namespaces");
    let Some(namespaces) = namespaces else {
        return Ok(None);
    };
    Ok(Some(Namespaces {
        names: patterns(namespaces.names, &place.field("names"))?,
        labels: selector(namespaces.labels, Sources::Refused, &place.field("labels"))?,
        existing: None,
    }))
}

fn imported(namespaces: Option<ImportedNamespaces>, place: &Place) -> Checked<Option<Namespaces>> {
    let place = place.field("namespaces");
    let Some(namespaces) = namespaces else {
        return Ok(None);
    };
    Ok(Some(Namespaces {
        names: patterns(namespaces.names, &place.field("names"))?,
        labels: None,
        existing: namespaces.existing,
    }))
}

/// Whether the keys of a selector can name a source of labels, as in `k8s:app`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sources {
    Allowed,
    Refused,
}

fn selector(field: Option<SelectorField>, sources: Sources, place: &Place) -> Checked<Option<Selector>> {
    let Some(field) = field else {
        return Ok(None);
    };
    let mut requirements = vec![];
    for (key, value) in field.match_labels {
        let place = place.field("matchLabels");
        let operator = Operator::In([value.into()].into());
        requirements.push(requirement(&key, operator, sources, &place)?);
    }
    for (at, expression) in field.match_expressions.into_iter().enumerate() {
        let place = place.field("matchExpressions").item(at);
        let values: BTreeSet<Box<str>> = expression.values.into_iter().map(Into::into).collect();
        let operator = match (expression.operator, values.is_empty()) {
            (OperatorField::In, false) => Operator::In(values),
            (OperatorField::NotIn, false) => Operator::NotIn(values),
            (OperatorField::Exists, true) => Operator::Exists,
            (OperatorField::DoesNotExist, true) => Operator::DoesNotExist,
            (operator, true) => {
                return Err(place.problem(format!("{operator:?} needs values")));
            }
            (operator, false) => {
                return Err(place.problem(format!("{operator:?} takes no values; remove them, or use In or NotIn")));
            }
        };
        requirements.push(requirement(&expression.key, operator, sources, &place)?);
    }
    Ok(Some(Selector { requirements }))
}

fn requirement(key: &str, operator: Operator, sources: Sources, place: &Place) -> Checked<Requirement> {
    let (source, key) = match key.split_once(':') {
        Some((source, _)) if sources == Sources::Refused => {
            let problem = format!("the label {key:?} has the source {source:?}, which only labels of identities have");
            return Err(place.problem(problem));
        }
        Some(("any", key)) => (None, key),
        Some((source, key)) => (Some(source.into()), key),
        None => (None, key),
    };
    if key.is_empty() {
        return Err(place.problem("the key of a label is empty".to_owned()));
    }
    let key = key.into();
    Ok(Requirement { source, key, operator })
}

/// A list that may be missing, but not empty: nothing would match.
fn non_empty<T>(list: Option<Vec<T>>, place: &Place) -> Checked<Option<Vec<T>>> {
    match list {
        Some(list) if list.is_empty() => {
            Err(place.problem("the list is empty and would match nothing; remove it, or give a name".to_owned()))
        }
        list => Ok(list),
    }
}

fn patterns(list: Option<Vec<String>>, place: &Place) -> Checked<Option<Vec<Glob>>> {
    let Some(list) = non_empty(list, place)? else {
        return Ok(None);
    };
    let globs = list
        .iter()
        .enumerate()
        .map(|(at, name)| name_pattern(name, &place.item(at)));
    globs.collect::<Checked<Vec<_>>>().map(Some)
}

/// A pattern for names of clusters or namespaces, which have lower case letters, digits and `-`.
fn name_pattern(name: &str, place: &Place) -> Checked<Glob> {
    let is_known = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '*');
    match !name.is_empty() && name.chars().all(is_known) {
        true => Ok(Glob::new(name)),
        false => Err(place.problem(format!(
            "{name:?} is no name: names have lower case letters, digits and '-', and '*' for any characters"
        ))),
    }
}

/// Regions and names of rules are values of metrics' labels, so both are short and plain.
fn word(text: String, what: &str, place: &Place) -> Checked<String> {
    let is_known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    match (1..=63).contains(&text.len()) && text.chars().all(is_known) {
        true => Ok(text),
        false => Err(place.problem(format!(
            "{text:?} is no {what}: it must be 1 to 63 letters, digits, '-', '_' or '.'"
        ))),
    }
}

fn region(region: String, place: &Place) -> Checked<String> {
    word(region, "region", place)
}

/// Checks the name of a rule or entry, by which metrics and reports name it.
fn unique(names: &mut BTreeSet<String>, name: &str, place: &Place) -> Checked<()> {
    let place = place.field("name");
    let name = word(name.to_owned(), "name", &place)?;
    match names.contains(&name) {
        true => Err(place.problem(format!(
            "{name:?} is the name of a former item of the list; choose another one"
        ))),
        false => {
            names.insert(name);
            Ok(())
        }
    }
}

impl Place {
    fn field(&self, name: &str) -> Self {
        match self.0.is_empty() {
            true => Self(name.to_owned()),
            false => Self(format!("{}.{name}", self.0)),
        }
    }

    fn item(&self, at: usize) -> Self {
        Self(format!("{}[{at}]", self.0))
    }

    fn problem(&self, problem: String) -> Mistake {
        Mistake {
            place: self.clone(),
            problem,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.is_empty() {
            true => Ok(()),
            false => write!(f, "{}: ", self.0),
        }
    }
}

impl From<ActionField> for Action {
    fn from(action: ActionField) -> Self {
        match action {
            ActionField::Include => Self::Include,
            ActionField::Exclude => Self::Exclude,
        }
    }
}

impl From<IdentitiesField> for Identities {
    fn from(field: IdentitiesField) -> Self {
        match field {
            IdentitiesField::All => Self::All,
            IdentitiesField::Used => Self::Used,
        }
    }
}
