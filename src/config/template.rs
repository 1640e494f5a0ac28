//! What the `config` command prints: a configuration to start from, and the one in effect.

use std::fmt::Write;

use super::reader::Origin;
use super::value::quoted;
use super::{Action, Config, DeletePayload, Entity, LegacyRows, OnFailure, Resolved, RowsFrom, VerifyRules};

/// A commented configuration with every key and its default.
pub fn template() -> &'static str {
    include_str!("template.toml")
}

fn verify(rules: &VerifyRules) -> String {
    let ignore =
        rules.ignore.iter().map(|i| format!("{{ column = {}, reason = {} }}", quoted(&i.column), quoted(&i.reason)));
    let tolerance = rules.tolerance.iter().map(|t| {
        let within = quoted(&t.within().to_string());
        format!("{{ column = {}, within = {within}, reason = {} }}", quoted(&t.column), quoted(&t.reason))
    });
    let lists = [("ignore", ignore.collect::<Vec<_>>()), ("tolerance", tolerance.collect())];
    let lists = lists.into_iter().filter(|(_, list)| !list.is_empty());
    let lists = lists.map(|(name, list)| format!("{name} = [{}]", list.join(", ")));
    let rules: Vec<String> = lists.chain(rules.without_events.then(|| "without_events = true".to_owned())).collect();
    format!("{{ {} }}", rules.join(", "))
}

fn rows(legacy: &LegacyRows, key: &str) -> String {
    let from = match &legacy.from {
        RowsFrom::Table(table) => format!("table = {}", quoted(&table.to_string())),
        RowsFrom::Query(file) => format!("query = {}", quoted(&file.path.display().to_string())),
    };
    format!("{{ {from}, key = {key}, aggregate_id = {} }}", quoted(&legacy.aggregate_id))
}

impl Resolved {
    /// The effective configuration as TOML, each value with its origin, without secrets.
    pub fn to_toml(&self) -> String {
        let mut lines: Vec<(String, String)> = vec![];
        let mut section = "";
        for setting in &self.settings {
            let (of, key) = setting.key.rsplit_once('.').unwrap_or(("", setting.key));
            if of != section {
                if !section.is_empty() {
                    lines.push(Default::default());
                }
                lines.push((format!("[{of}]"), String::new()));
                section = of;
            }
            let line = match (setting.value.as_str(), &setting.origin) {
                ("", Origin::Missing) => format!("#{key} ="),
                ("", _) => format!("#{key} = wrong"),
                (value, _) => format!("{key} = {value}"),
            };
            lines.push((line, format!("# {}", setting.origin)));
        }
        if let Ok(config) = &self.config {
            tokens(&mut lines, config);
            config.entities.iter().for_each(|entity| self.entity(&mut lines, entity));
        }
        let width = lines.iter().filter(|(_, origin)| !origin.is_empty()).map(|(line, _)| line.chars().count()).max();
        let mut text = String::new();
        for (line, origin) in &lines {
            // Writing to a string does not fail.
            let _ = match origin.as_str() {
                "" => writeln!(text, "{line}"),
                origin => writeln!(text, "{line:width$}  {origin}", width = width.unwrap_or(0).min(60)),
            };
        }
        text
    }

    fn entity(&self, lines: &mut Vec<(String, String)>, entity: &Entity) {
        let list = |columns: &[String]| {
            format!("[{}]", columns.iter().map(|column| quoted(column)).collect::<Vec<_>>().join(", "))
        };
        let file = self.file.as_ref().map_or(String::new(), |file| file.display().to_string());
        let mut line = |text: String| lines.push((text, String::new()));
        line(String::new());
        line(format!("[[entity]]  # {file}:{}", entity.line));
        line(format!("name = {}", quoted(&entity.name)));
        line(format!("aggregate_type = {}", quoted(&entity.aggregate_type)));
        if let Some(table) = &entity.table {
            line(format!("table = {}", quoted(&table.to_string())));
        }
        if !entity.key.is_empty() {
            line(format!("key = {}", list(&entity.key)));
        }
        if !entity.replace_by.is_empty() {
            line(format!("replace_by = {}", list(&entity.replace_by)));
        }
        if let Some(mapping) = &entity.mapping {
            line(format!("mapping = {}", quoted(&mapping.path.display().to_string())));
        }
        if let Some(legacy) = &entity.legacy {
            line(format!("legacy = {}", rows(legacy, &list(&legacy.key))));
            let names = &legacy.capture;
            let payload = if names.delete_payload == DeletePayload::Key { "key" } else { "row" };
            let (insert, update, delete) = (quoted(&names.insert), quoted(&names.update), quoted(&names.delete));
            line(format!(
                "capture = {{ insert = {insert}, update = {update}, delete = {delete}, delete_payload = \"{payload}\" }}"
            ));
        }
        if entity.verify != VerifyRules::default() {
            line(format!("verify = {}", verify(&entity.verify)));
        }
        if entity.string_payloads {
            line("string_payloads = true".to_owned());
        }
        line(format!("on_failure = \"{}\"", if entity.on_failure == OnFailure::Hold { "hold" } else { "pass" }));
        line("[entity.events]".to_owned());
        for (event_type, action) in &entity.events {
            let action = match action {
                Action::Upsert => "\"upsert\"".to_owned(),
                Action::Delete => "\"delete\"".to_owned(),
                Action::Ignore => "\"ignore\"".to_owned(),
                Action::Sql(file) => format!("{{ sql = {} }}", quoted(&file.path.display().to_string())),
            };
            line(format!("{} = {action}", quoted(event_type)));
        }
    }
}

fn tokens(lines: &mut Vec<(String, String)>, config: &Config) {
    if !config.admin.tokens.is_empty() {
        lines.push(Default::default());
    }
    for token in &config.admin.tokens {
        lines.push((
            format!("# a token for the admin API: {:?} ({:?})", token.name, token.role).to_lowercase(),
            String::new(),
        ));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::super::Overrides;
    use super::*;

    fn resolve(file: &Path, env: &[(&str, &str)]) -> Resolved {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Config::resolve(Some(file), &Overrides::default(), env)
    }

    /// As if the operator had removed the `#` of every key.
    fn uncommented() -> String {
        let line = |line: &str| match line.strip_prefix('#') {
            Some(key) if !key.is_empty() && !key.starts_with(' ') => key.to_owned(),
            _ => line.to_owned(),
        };
        template().lines().map(|text| line(text) + "\n").collect()
    }

    #[test]
    fn the_template_is_a_configuration() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("outbox-relay.toml");
        fs::write(&file, template()).unwrap();
        let config = resolve(&file, &[]).config.unwrap();
        assert_eq!(config.entities[0].name, "users");
    }

    #[test]
    fn the_template_holds_every_key_with_its_default() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("outbox-relay.toml");
        fs::write(&file, uncommented()).unwrap();
        for (path, text) in [
            ("mappings/user.sql", "SELECT"),
            ("handlers/user_merged.sql", "x"),
            ("secrets/alice.token", "0123456789abcdef"),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let shown = resolve(&file, &[]);
        let empty = folder.path().join("empty.toml");
        fs::write(&empty, "").unwrap();
        for (shown, built_in) in shown.settings.iter().zip(resolve(&empty, &[]).settings) {
            assert!(matches!(shown.origin, Origin::Written(_)), "{} is not in the template", shown.key);
            if built_in.origin == Origin::Default {
                assert_eq!(shown.value, built_in.value, "{}", shown.key);
            }
        }
        let config = shown.config.unwrap();
        assert_eq!(config.admin.tokens.len(), 1);
        assert_eq!(config.entities[0].on_failure, OnFailure::default());
        assert_eq!(config.entities[0].events.len(), 5);
    }

    #[test]
    fn the_resolved_configuration_tells_origins_and_no_secret_and_can_be_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("outbox-relay.toml");
        fs::write(&file, template()).unwrap();
        let env = [
            ("OUTBOX_RELAY_NEW__URL", "postgres://n:s3cret@new/u"),
            ("OUTBOX_RELAY_ADMIN_TOKEN", "s3cret-and-long-enough"),
            ("OUTBOX_RELAY_RELAY__WORKERS", "7"),
        ];
        let resolved = resolve(&file, &env);
        let text = resolved.to_toml();
        assert!(!text.contains("s3cret"), "{text}");
        let line =
            |of: &str| text.lines().find(|line| line.starts_with(of)).unwrap_or_else(|| panic!("{of} in {text}"));
        assert!(line("workers = 7").ends_with("# OUTBOX_RELAY_RELAY__WORKERS"));
        assert!(line("batch = 2000").ends_with("# default"));
        assert!(line("url = \"postgres://relay@legacy").contains("outbox-relay.toml:"));
        assert!(line("url = \"postgres://n:***@new/u\"").ends_with("# OUTBOX_RELAY_NEW__URL"));
        fs::write(&file, &text).unwrap();
        let again = resolve(&file, &env);
        let values =
            |resolved: &Resolved| resolved.settings.iter().map(|s| (s.key, s.value.clone())).collect::<BTreeSet<_>>();
        assert_eq!(values(&again), values(&resolved));
        assert_eq!(again.config.unwrap().entities[0].events, resolved.config.unwrap().entities[0].events);
    }

    #[test]
    fn what_is_missing_or_wrong_is_shown_as_such() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("outbox-relay.toml");
        fs::write(&file, "[relay]\nworkers = 0\n").unwrap();
        let text = resolve(&file, &[]).to_toml();
        assert!(text.contains("#url =") && text.contains("# missing") && text.contains("#workers = wrong"), "{text}");
    }
}
