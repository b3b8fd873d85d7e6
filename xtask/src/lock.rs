//! Pins Python packages for every Python version that the project supports.
//!
//! uv chooses versions for all Pythons at once, down to the patch release. pip reports which Python
//! each pin requires, and that is written beside it:
//!
//! ```text
//! soupsieve==4.1.3 ; python_full_version >= '3.11.5'  # Python >=3.11.5
//! ```
//!
//! So a test can check offline that every supported Python can install its pins.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::iter::Peekable;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::process::output;
use crate::project::Project;
use crate::python::{Environment, NEWEST, OLDEST, OLDEST_WITH_JAX, Series, python};
use warm_evcxr::files;

/// A file of pins and how it is made. Paths are relative to the project folder.
struct Lock {
    pins: &'static str,
    /// The files that name the wanted packages.
    wanted: &'static [&'static str],
    oldest: Series,
    /// More options for `uv pip compile`.
    options: &'static [&'static str],
}

const LOCKS: [Lock; 4] = [
    Lock {
        pins: "notebooks/requirements.txt",
        wanted: &["notebooks/jupyter.in", "notebooks/cells.in"],
        oldest: OLDEST,
        options: &[],
    },
    Lock {
        pins: "xtask/carried/requirements.txt",
        wanted: &["xtask/carried/requirements.in"],
        oldest: OLDEST,
        // Needed only on PyPy.
        options: &["--no-emit-package", "cffi", "--no-emit-package", "pycparser"],
    },
    Lock {
        pins: "xtask/peers/requirements.txt",
        wanted: &["xtask/peers/requirements.in"],
        oldest: OLDEST_WITH_JAX,
        options: &["--no-deps"],
    },
    Lock {
        pins: "tests/golden/requirements.txt",
        wanted: &["tests/golden/requirements.in"],
        oldest: OLDEST_WITH_JAX,
        options: &[],
    },
];

/// The supported systems, as Python's `sys.platform`.
const SYSTEMS: [&str; 2] = ["darwin", "linux"];
/// Tells uv to choose versions for these systems.
const SETTINGS: &str = "[tool.uv]
environments = [\"sys_platform == 'darwin'\", \"sys_platform == 'linux'\"]
";
/// The condition that uv then adds to every pin.
const ANY_SYSTEM: &str = "sys_platform == 'darwin' or sys_platform == 'linux'";

/// Separates a pin from the Python that it requires.
const NOTE: &str = "  # Python ";

/// Rewrites all files of pins. Keeps pinned versions that still fit, unless `upgrade` asks for the
/// newest.
///
/// # Errors
/// If uv finds no compatible versions, or pip finds no wheel of one for a supported Python.
pub fn renew(project: &Project, upgrade: bool) -> Result<()> {
    let environment = Environment::new(project.tools().join("lock"), "uv\n".to_owned());
    if !environment.is_up_to_date(&["uv"]) {
        environment.create(OLDEST)?;
        environment.install(["--upgrade", "pip", "uv"])?;
        environment.finish()?;
    }
    for lock in LOCKS {
        println!("Choosing versions for {}", lock.pins);
        let path = project.root().join(lock.pins);
        let text = lock.resolve(project, &environment, upgrade)?;
        let pins = text.lines().map(Pin::parse).collect::<Result<Vec<_>>>()?;
        let required = lock.required_pythons(&environment, &pins)?;
        let mut file = format!(
            "# Made by `cargo xtask lock` from {}\n# for Python {}.{} to {}.{}.\n\
             # The comment after each pin is the Python that it requires.\n",
            lock.wanted.join(" and "),
            lock.oldest.0,
            lock.oldest.1,
            NEWEST.0,
            NEWEST.1
        );
        for (line, pin) in text.lines().zip(&pins) {
            let python = required.get(&pin.requirement);
            let python = python.with_context(|| format!("no Python would install `{line}`"))?;
            file += &format!("{line}{NOTE}{python}\n");
        }
        files::write(&path, &file)?;
    }
    Ok(())
}

/// The packages pinned in the text of a file for a Python series on Linux, such as `six==1.17.0`.
///
/// # Errors
/// If a line is not a pin.
pub(crate) fn pinned(text: &str, (major, minor): Series) -> Result<Vec<String>> {
    let pins = text.lines().filter(|line| !line.starts_with('#')).map(Pin::parse);
    let pins = pins.collect::<Result<Vec<_>>>()?;
    // What the first patch release can install, the later ones can, too.
    let chosen = pins.into_iter().filter(|pin| pin.holds([major, minor, 0], "linux"));
    Ok(chosen.map(|pin| pin.requirement).collect())
}

impl Lock {
    /// The lines of the new file, as chosen by uv.
    fn resolve(
        &self,
        project: &Project,
        environment: &Environment,
        upgrade: bool,
    ) -> Result<String> {
        let folder = project.tools().join("lock");
        files::write(&folder.join("pyproject.toml"), SETTINGS)?;
        // uv prefers the versions in its output file.
        let pins = folder.join("pins.txt");
        let path = project.root().join(self.pins);
        fs::write(&pins, fs::read_to_string(path).unwrap_or_default())?;
        let wanted: Vec<PathBuf> =
            self.wanted.iter().map(|name| project.root().join(name)).collect();
        let mut uv = python(environment.python());
        uv.args(["-m", "uv", "pip", "compile", "--universal", "--no-header", "--no-annotate"]);
        uv.args(["--quiet", "--python-version", &format!("{}.{}", self.oldest.0, self.oldest.1)]);
        uv.args(self.options).args(upgrade.then_some("--upgrade"));
        uv.arg("--output-file").arg(&pins).args(wanted).current_dir(&folder);
        output(&mut uv).with_context(|| format!("cannot choose versions for {}", self.pins))?;
        let text = fs::read_to_string(pins)?;
        let text = text.replace(&format!(" and ({ANY_SYSTEM})"), "");
        Ok(text.replace(&format!(" ; {ANY_SYSTEM}"), ""))
    }

    /// The Python that each pin requires, as reported by pip, which must find a wheel for every
    /// series that the pin is for.
    fn required_pythons(
        &self,
        environment: &Environment,
        pins: &[Pin],
    ) -> Result<BTreeMap<String, String>> {
        let mut required = BTreeMap::new();
        for minor in self.oldest.1..=NEWEST.1 {
            let mut found = BTreeMap::new();
            // A series may be split between two versions of a package: its first and its last patch
            // release cover both.
            for patch in [0, 99] {
                let version = [NEWEST.0, minor, patch];
                let holds = |pin: &&Pin| SYSTEMS.iter().any(|system| pin.holds(version, system));
                let wanted = pins.iter().filter(holds).map(|pin| pin.requirement.clone());
                let wanted = wanted.filter(|requirement| !found.contains_key(requirement));
                let wanted: Vec<String> = wanted.collect();
                if !wanted.is_empty() {
                    let series = format!("{}.{minor}", NEWEST.0);
                    found.extend(ask_pip(environment, &wanted, &series)?);
                }
            }
            required.extend(found);
        }
        Ok(required)
    }
}

/// The Python that each package requires, as reported by pip for one series.
fn ask_pip(
    environment: &Environment,
    wanted: &[String],
    series: &str,
) -> Result<BTreeMap<String, String>> {
    let (report, target) = (environment.folder().join("report.json"), environment.folder());
    let mut pip: Vec<&OsStr> =
        ["--dry-run", "--ignore-installed", "--no-deps"].map(OsStr::new).into();
    pip.extend(["--only-binary=:all:", "--ignore-requires-python"].map(OsStr::new));
    pip.extend(["--python-version", series, "--target"].map(OsStr::new));
    pip.extend([target.as_os_str(), OsStr::new("--report"), report.as_os_str()]);
    pip.extend(wanted.iter().map(OsStr::new));
    environment.install(pip).with_context(|| format!("no wheels for Python {series}"))?;
    let report: Value = serde_json::from_str(&fs::read_to_string(report)?)?;
    let packages = report["install"].as_array().context("pip's report lists no packages")?;
    packages
        .iter()
        .map(|package| {
            let metadata = &package["metadata"];
            let text = |key: &str| metadata[key].as_str();
            let name = text("name").context("pip reports a package without a name")?;
            let version = text("version").context("pip reports a package without a version")?;
            let python = text("requires_python").unwrap_or("any");
            Ok((format!("{}=={version}", normalized(name)), python.to_owned()))
        })
        .collect()
}

/// A package name in its normalized form, for comparisons.
fn normalized(name: &str) -> String {
    let parts = name.split(['-', '_', '.']).filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("-").to_lowercase()
}

/// A line in a file of pins.
struct Pin {
    /// `name==version`.
    requirement: String,
    /// The Pythons and systems that the pin is for.
    marker: Marker,
}

impl Pin {
    fn parse(line: &str) -> Result<Self> {
        let (pin, _) = line.split_once(NOTE).unwrap_or((line, ""));
        let (requirement, marker) = pin.split_once(" ; ").unwrap_or((pin, ""));
        ensure!(requirement.contains("=="), "not pinned: {line}");
        let marker = Marker::parse(marker).with_context(|| format!("cannot parse `{line}`"))?;
        Ok(Self { requirement: requirement.to_owned(), marker })
    }

    /// Whether the pin is for this Python on this system.
    fn holds(&self, version: Version, system: &str) -> bool {
        self.marker.holds(version, system)
    }
}

/// A Python version: major, minor, patch.
type Version = [u32; 3];

/// A condition such as `python_full_version < '3.11' and sys_platform == 'linux'`.
#[derive(Debug)]
enum Marker {
    All(Vec<Marker>),
    Any(Vec<Marker>),
    Python(Constraint),
    /// A variable, whether it must be equal or different, and the value.
    Text(String, bool, String),
}

impl Marker {
    fn parse(text: &str) -> Result<Self> {
        let spaced = text.replace('(', "( ").replace(')', " )");
        let mut words = spaced.split_whitespace().peekable();
        if words.peek().is_none() {
            return Ok(Self::All(Vec::new()));
        }
        let marker = Self::parse_any(&mut words)?;
        ensure!(words.next().is_none(), "unexpected text after the condition");
        Ok(marker)
    }

    fn parse_any<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>) -> Result<Self> {
        let mut parts = vec![Self::parse_all(words)?];
        while words.next_if_eq(&"or").is_some() {
            parts.push(Self::parse_all(words)?);
        }
        Ok(Self::Any(parts))
    }

    fn parse_all<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>) -> Result<Self> {
        let mut parts = vec![Self::parse_one(words)?];
        while words.next_if_eq(&"and").is_some() {
            parts.push(Self::parse_one(words)?);
        }
        Ok(Self::All(parts))
    }

    fn parse_one<'a>(words: &mut Peekable<impl Iterator<Item = &'a str>>) -> Result<Self> {
        let mut next = || words.next().context("the condition is incomplete");
        let variable = next()?;
        if variable == "(" {
            let marker = Self::parse_any(words)?;
            ensure!(words.next() == Some(")"), "missing `)`");
            return Ok(marker);
        }
        let (operator, value) = (next()?, next()?.trim_matches('\''));
        if variable == "python_full_version" {
            return Ok(Self::Python(Constraint::parse(&format!("{operator}{value}"))?));
        }
        // `python_version` has no patch release: it cannot tell 3.11.2 from 3.11.5.
        ensure!(variable != "python_version", "use python_full_version, not python_version");
        ensure!(matches!(operator, "==" | "!="), "unknown operator {operator}");
        Ok(Self::Text(variable.to_owned(), operator == "==", value.to_owned()))
    }

    fn holds(&self, version: Version, system: &str) -> bool {
        match self {
            Self::All(parts) => parts.iter().all(|part| part.holds(version, system)),
            Self::Any(parts) => parts.iter().any(|part| part.holds(version, system)),
            Self::Python(constraint) => constraint.holds(version),
            Self::Text(variable, equal, value) => {
                let actual = match variable.as_str() {
                    "sys_platform" => system,
                    "implementation_name" => "cpython",
                    "platform_python_implementation" => "CPython",
                    "platform_machine" => "x86_64",
                    "os_name" => "posix",
                    _ => "",
                };
                (actual == value) == *equal
            }
        }
    }
}

/// One condition on a version, such as `>=3.11.5` or `!=3.11.*`.
#[derive(Debug)]
struct Constraint {
    operator: &'static str,
    numbers: Vec<u32>,
    is_prefix: bool,
}

impl Constraint {
    fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let operators = ["~=", "==", "!=", "<=", ">=", "<", ">"];
        let operator = operators.into_iter().find(|operator| text.starts_with(operator));
        let operator = operator.with_context(|| format!("not a version constraint: {text}"))?;
        let version = text[operator.len()..].trim();
        let (numbers, is_prefix) = match version.strip_suffix(".*") {
            Some(prefix) => (prefix, true),
            None => (version, false),
        };
        let numbers = numbers.split('.').map(str::parse).collect::<Result<Vec<u32>, _>>();
        let numbers = numbers.with_context(|| format!("not a Python version: {version}"))?;
        Ok(Self { operator, numbers, is_prefix })
    }

    fn holds(&self, version: Version) -> bool {
        let number = |index: usize| self.numbers.get(index).copied().unwrap_or(0);
        let order = version.cmp(&[number(0), number(1), number(2)]);
        let starts_with = |prefix: &[u32]| version.iter().zip(prefix).all(|(a, b)| a == b);
        let equal = if self.is_prefix { starts_with(&self.numbers) } else { order.is_eq() };
        match self.operator {
            "==" => equal,
            "!=" => !equal,
            "<" => order.is_lt(),
            ">" => order.is_gt(),
            "<=" => order.is_le(),
            ">=" => order.is_ge(),
            // `~=3.10` means at least 3.10, but below 4.
            _ => order.is_ge() && starts_with(&self.numbers[..self.numbers.len() - 1]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::python::package_names;

    /// Whether this Python may install a package that requires `required`.
    fn may_install(required: &str, version: Version) -> Result<bool> {
        if required == "any" {
            return Ok(true);
        }
        let parts = required.split(',').map(Constraint::parse).collect::<Result<Vec<_>>>()?;
        Ok(parts.iter().all(|part| part.holds(version)))
    }

    /// The reasons why a Python on a system cannot install its pins.
    fn problems(
        pins: &[(Pin, &str)],
        wanted: &[String],
        version: Version,
        system: &str,
    ) -> Vec<String> {
        let mut found = Vec::new();
        let mut chosen: Vec<&str> = Vec::new();
        for (pin, required) in pins.iter().filter(|(pin, _)| pin.holds(version, system)) {
            let (name, _) = pin.requirement.split_once("==").unwrap();
            if chosen.contains(&name) {
                found.push(format!("{version:?} has several pins of {name}"));
            }
            chosen.push(name);
            if !may_install(required, version).unwrap() {
                found.push(format!("{version:?} may not install {}", pin.requirement));
            }
        }
        // If a package has several pins, together they must cover every version.
        let mut names: Vec<&str> =
            pins.iter().map(|(pin, _)| pin.requirement.split_once("==").unwrap().0).collect();
        let twice = |name: &&str| names.iter().filter(|other| other == &name).count() > 1;
        let shared: Vec<&str> = names.iter().copied().filter(twice).collect();
        names = wanted.iter().map(String::as_str).chain(shared).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| !chosen.contains(name));
        found.extend(names.iter().map(|name| format!("{version:?} has no pin of {name}")));
        found
    }

    fn versions(oldest: Series) -> impl Iterator<Item = Version> {
        (oldest.1..=NEWEST.1).flat_map(|minor| (0..=30).map(move |patch| [3, minor, patch]))
    }

    /// The pins and the Pythons that they require.
    fn pins(text: &str) -> Vec<(Pin, &str)> {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.map(|line| (Pin::parse(line).unwrap(), line.split_once(NOTE).unwrap().1)).collect()
    }

    #[test]
    fn every_supported_python_can_install_its_pins() {
        let project = Project::new();
        let read = |name: &str| fs::read_to_string(project.root().join(name)).unwrap();
        for lock in LOCKS {
            let text = read(lock.pins);
            let pins = pins(&text);
            // Packages for one system only (with a condition after the name) are not checked.
            let wanted: String = lock.wanted.iter().map(|name| read(name)).collect();
            let wanted: String = wanted
                .lines()
                .filter(|line| !line.contains(';'))
                .fold(String::new(), |text, line| text + line + "\n");
            let wanted: Vec<String> = package_names(&wanted).map(normalized).collect();
            assert!(!wanted.is_empty() && pins.len() >= wanted.len(), "{}", lock.pins);
            for version in versions(lock.oldest) {
                for system in SYSTEMS {
                    assert_eq!(problems(&pins, &wanted, version, system), [""; 0], "{}", lock.pins);
                }
            }
        }
    }

    #[test]
    fn pins_that_fail_for_a_patch_release_are_found() {
        let wanted = ["soupsieve".to_owned()];
        let old = "soupsieve==2.10 ; python_full_version < '3.11'  # Python >=3.9\n\
                   soupsieve==4.1.3 ; python_full_version >= '3.11'  # Python >=3.11.5\n";
        let good = old.replace("'3.11'", "'3.11.5'");
        let gap = good.replacen("'3.11.5'", "'3.11.4'", 1);
        let both = good.replacen("'3.11.5'", "'3.11.6'", 1);
        let at = |text: &str, patch| problems(&pins(text), &wanted, [3, 11, patch], "linux");
        assert_eq!(at(old, 2), ["[3, 11, 2] may not install soupsieve==4.1.3"]);
        assert_eq!(at(&gap, 4), ["[3, 11, 4] has no pin of soupsieve"]);
        assert_eq!(at(&both, 5), ["[3, 11, 5] has several pins of soupsieve"]);
        for patch in 0..9 {
            assert_eq!(at(&good, patch), [""; 0]);
        }
    }

    #[test]
    fn packages_are_pinned_once_for_a_series() {
        let text = "# Made\n\
                    soupsieve==2.10 ; python_full_version < '3.11.5'  # Python >=3.9\n\
                    soupsieve==4.1.3 ; python_full_version >= '3.11.5'  # Python >=3.11.5\n\
                    appnope==0.1 ; sys_platform == 'darwin'  # Python >=3.6\n\
                    six==1.17.0  # Python >=2.7\n";
        assert_eq!(pinned(text, (3, 11)).unwrap(), ["soupsieve==2.10", "six==1.17.0"]);
        assert_eq!(pinned(text, (3, 12)).unwrap(), ["soupsieve==4.1.3", "six==1.17.0"]);
    }

    #[test]
    fn markers_are_evaluated_as_in_python() {
        let holds = |marker: &str, version| Marker::parse(marker).unwrap().holds(version, "linux");
        assert!(holds("", [3, 10, 0]));
        assert!(holds("python_full_version == '3.11.*'", [3, 11, 7]));
        assert!(!holds("python_full_version == '3.11.*'", [3, 12, 0]));
        let both = "python_full_version < '3.11' and sys_platform == 'linux'";
        assert!(holds(both, [3, 10, 13]) && !holds(both, [3, 11, 0]));
        let nested =
            "(sys_platform == 'darwin' or os_name != 'nt') and implementation_name != 'PyPy'";
        assert!(holds(nested, [3, 14, 0]));
        assert!(!holds("sys_platform == 'darwin' or python_full_version > '3.13'", [3, 13, 0]));
        for bad in ["python_version < '3.11'", "(os_name == 'nt'", "os_name", "os_name == 'a' b"] {
            assert!(Marker::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn version_constraints_are_evaluated_as_in_python() {
        let may = |required, version| may_install(required, version).unwrap();
        assert!(may(">=3.9,!=3.11.*, <4", [3, 10, 2]) && !may(">=3.9,!=3.11.*, <4", [3, 11, 2]));
        assert!(may("~=3.10", [3, 13, 0]) && !may("~=3.10.2", [3, 11, 0]));
        assert!(!may(">=3.11.5", [3, 11, 4]) && may(">=3.11.5", [3, 11, 5]));
        assert!(may("<=3.14,>3.9", [3, 14, 0]) && !may("==3.12", [3, 12, 1]));
        assert!(may_install("", [3, 12, 0]).is_err() && may_install(">=3.x", [3, 12, 0]).is_err());
    }
}
