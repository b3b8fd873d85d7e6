//! Creates Python environments and starts Python in isolation.
//!
//! Environment variables, an active environment and files in the current folder are for the user's
//! own work and must not affect the project's Pythons. Only pip's settings for package sources and
//! the network are kept.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{command, output};
use crate::ui::Spinner;
use warm_evcxr::files;

/// A Python series, such as 3.11.
pub(crate) type Series = (u32, u32);

/// The oldest and newest series that packages are pinned for.
pub(crate) const OLDEST: Series = (3, 10);
pub(crate) const NEWEST: Series = (3, 14);
/// The oldest series that the pinned JAX supports.
pub(crate) const OLDEST_WITH_JAX: Series = (3, 11);

/// Pythons to try. The user's default comes first. The last one works even if an active environment
/// that lacks something hides the system's Python.
const PROGRAMS: [&str; 7] = [
    "python3",
    "python3.14",
    "python3.13",
    "python3.12",
    "python3.11",
    "python3.10",
    "/usr/bin/python3",
];

/// Prints the program's path, its version, and its problems, one per line.
const PROBE: &str = "
import sys, sysconfig
print(sys.executable)
print(*sys.version_info[:3])
if sys.implementation.name != 'cpython' or sysconfig.get_config_var('Py_GIL_DISABLED'):
    print('not the standard CPython')
try:
    import venv, ensurepip
    ensurepip.version()
except Exception:
    print('without `venv` and `ensurepip`')
";

/// The variables that are kept: package sources, network settings, and a token.
const KEPT_VARIABLES: [&str; 15] = [
    "PIP_CACHE_DIR",
    "PIP_CERT",
    "PIP_CLIENT_CERT",
    "PIP_CONFIG_FILE",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_EXTRA_INDEX_URL",
    "PIP_FIND_LINKS",
    "PIP_INDEX_URL",
    "PIP_KEYRING_PROVIDER",
    "PIP_NO_CACHE_DIR",
    "PIP_NO_INDEX",
    "PIP_PROXY",
    "PIP_RETRIES",
    "PIP_TRUSTED_HOST",
    // The password of a JupyterLab in a container.
    "JUPYTER_TOKEN",
];

/// A command that runs Python in isolation from the user's settings.
pub fn python(program: impl AsRef<OsStr>) -> Command {
    let mut python = command(program);
    // `-I` also ignores modules in the current folder. Python 3.10 has no variable for that.
    isolate(&mut python).args(["-I", "-X", "utf8"]);
    python
}

/// Removes the user's Python settings from a command's environment, so that any Python it starts is
/// isolated, too.
pub fn isolate(program: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_user_setting) {
            program.env_remove(name);
        }
    }
    // UTF-8 in any locale, and no packages from the user's site folder.
    program.env("PYTHONUTF8", "1").env("PYTHONNOUSERSITE", "1")
}

/// Whether a variable holds the user's settings for Python, pip or Jupyter.
fn is_user_setting(variable: &str) -> bool {
    const PREFIXES: [&str; 7] =
        ["PYTHON", "PIP_", "CONDA_", "_CONDA_", "JUPYTER_", "IPYTHON", "VIRTUAL_ENV"];
    let others = ["_CE_CONDA", "_CE_M", "__PYVENV_LAUNCHER__"];
    let has_prefix = PREFIXES.iter().any(|prefix| variable.starts_with(prefix));
    (has_prefix && !KEPT_VARIABLES.contains(&variable)) || others.contains(&variable)
}

/// The package names in a requirements file, one per line.
pub(crate) fn package_names(text: &str) -> impl Iterator<Item = &str> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .map(move |line| line.split(|letter| !is_name(letter)).next().unwrap_or_default())
}

/// A Python environment that is created anew whenever its requirements change.
pub(crate) struct Environment {
    folder: PathBuf,
    requirements: String,
}

impl Environment {
    /// The environment in a folder; it is up to date only for the text in `requirements`.
    pub(crate) fn new(folder: PathBuf, requirements: String) -> Self {
        Self { folder, requirements }
    }

    /// The environment's folder.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// The environment's interpreter.
    pub(crate) fn python(&self) -> PathBuf {
        self.folder.join("bin/python")
    }

    /// Whether the environment is complete, in its place, matches the requirements and works. It
    /// breaks when the system's Python is removed or upgraded to another series, which looks for
    /// packages elsewhere.
    pub(crate) fn is_up_to_date(&self, modules: &[&str]) -> bool {
        let stamp = fs::read_to_string(self.stamp()).unwrap_or_default();
        self.series().is_ok_and(|series| stamp == self.description(&series)) && self.has(modules)
    }

    /// Whether Python finds these modules in it.
    pub(crate) fn has(&self, modules: &[&str]) -> bool {
        // Import only the first, because it takes time: native code in it shows whether it fits.
        let first = modules.first().map(|first| format!("import {first}\n")).unwrap_or_default();
        let check = format!(
            "{first}import sys\n\
             from importlib.util import find_spec\n\
             sys.exit(not all(map(find_spec, sys.argv[1:])))"
        );
        output(python(self.python()).args(["-c", &check]).args(modules)).is_ok()
    }

    /// Creates the environment anew, without packages. Returns a description of the Python used.
    pub(crate) fn create(&self, oldest: Series) -> Result<String> {
        let found = find(oldest)?;
        self.create_with(&found)?;
        Ok(found.to_string())
    }

    fn create_with(&self, found: &Found) -> Result<()> {
        let folder = self.folder.display();
        files::remove(&self.folder).with_context(|| format!("cannot remove {folder}"))?;
        output(python(&found.program).args(["-m", "venv"]).arg(&self.folder)).with_context(
            || format!("cannot create a Python environment in {folder} with {found}"),
        )?;
        Ok(())
    }

    /// Runs `pip install` with these arguments.
    pub(crate) fn install(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<()> {
        let _spinner = Spinner::new("pip install");
        let mut pip = python(self.python());
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        // These override pip's configuration file.
        pip.env("PIP_USER", "0").env("PIP_CONSTRAINT", "/dev/null");
        output(pip.args(arguments)).map(drop).context(
            "pip failed (is the package index reachable, directly or through PIP_PROXY and \
             PIP_INDEX_URL?)",
        )
    }

    /// Marks the environment as complete. Call this last, so that an interrupted installation is
    /// started over.
    pub(crate) fn finish(&self) -> Result<()> {
        let stamp = self.stamp();
        fs::write(&stamp, self.description(&self.series()?))
            .with_context(|| format!("cannot write {}", stamp.display()))
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("made-of.txt")
    }

    fn description(&self, series: &str) -> String {
        format!("Python {series} in {}\n{}", self.folder.display(), self.requirements)
    }

    fn series(&self) -> Result<String> {
        output(python(self.python()).args(["-c", "import sys; print(*sys.version_info[:2])"]))
    }
}

/// A Python program and its problem, if it has one.
#[derive(Clone, Debug)]
struct Found {
    program: PathBuf,
    version: [u32; 3],
    problem: Option<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    /// It cannot be used.
    Fatal(String),
    /// It may work, but there may be no wheels for it.
    Untested(String),
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [major, minor, patch] = self.version;
        write!(f, "Python {major}.{minor}.{patch} ({})", self.program.display())?;
        match &self.problem {
            Some(Problem::Fatal(reason) | Problem::Untested(reason)) => write!(f, ", {reason}"),
            None => Ok(()),
        }
    }
}

/// The first suitable Python, or else one that may work.
fn find(oldest: Series) -> Result<Found> {
    find_among(&PROGRAMS.map(PathBuf::from), oldest)
}

fn find_among(names: &[PathBuf], oldest: Series) -> Result<Found> {
    let mut others: Vec<Found> = Vec::new();
    for found in names.iter().filter_map(|name| probe(name, oldest)) {
        if found.problem.is_none() {
            return Ok(found);
        }
        // Skip the same Python under another name.
        let is_known =
            |other: &Found| (other.version, &other.problem) == (found.version, &found.problem);
        if !others.iter().any(is_known) {
            others.push(found);
        }
    }
    let is_untested = |found: &&Found| matches!(found.problem, Some(Problem::Untested(_)));
    if let Some(found) = others.iter().find(is_untested) {
        return Ok(found.clone());
    }
    let found: Vec<String> = others.iter().map(ToString::to_string).collect();
    bail!(
        "found no Python {} to {} that can create environments ({}): install one with its `venv` \
         module (Debian and Ubuntu: `apt install python3-venv`)",
        name(oldest),
        name(NEWEST),
        if found.is_empty() {
            "none found".to_owned()
        } else {
            format!("found {}", found.join("; "))
        },
    )
}

/// Runs a Python and returns its version and problem, or `None` if it does not run.
fn probe(program: &Path, oldest: Series) -> Option<Found> {
    let answer = output(python(program).args(["-c", PROBE])).ok()?;
    let mut lines = answer.lines();
    let program = lines.next()?.into();
    let version: Vec<u32> = lines.next()?.split(' ').filter_map(|part| part.parse().ok()).collect();
    let version: [u32; 3] = version.try_into().ok()?;
    let problems = lines.collect::<Vec<_>>();
    let series = (version[0], version[1]);
    let problem = if series < oldest {
        Some(Problem::Fatal(format!("older than {}", name(oldest))))
    } else if let Some(problem) = problems.iter().find(|it| it.starts_with("without")) {
        Some(Problem::Fatal((*problem).to_owned()))
    } else if series > NEWEST {
        Some(Problem::Untested(format!("newer than {}, the newest tested", name(NEWEST))))
    } else {
        problems.first().map(|problem| Problem::Untested((*problem).to_owned()))
    };
    Some(Found { program, version, problem })
}

fn name((major, minor): Series) -> String {
    format!("{major}.{minor}")
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A script that acts as a Python of this version and prints these problems when probed.
    fn fake(folder: &Path, name: &str, version: &str, problems: &str) -> PathBuf {
        let path = folder.join(name);
        let script = format!(
            "#!/bin/sh\n\
             case \"$*\" in\n\
             *'-m venv'*) for last; do :; done\n\
             mkdir -p \"$last/bin\"; cp \"$0\" \"$last/bin/python\";;\n\
             *sys.executable*) echo \"$0\"; echo {version}; printf '{problems}';;\n\
             *version_info*) echo {version} | cut -d ' ' -f 1,2;;\n\
             *'import gone'*) exit 1;;\n\
             esac\n"
        );
        fs::write(&path, script).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    const NO_VENV: &str = "without `venv` and `ensurepip`\\n";

    #[test]
    fn the_first_suitable_python_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, version: &str, problems: &str| {
            fake(folder.path(), name, version, problems)
        };
        let absent = folder.path().join("absent");
        let old = at("old", "3 9 19", "");
        let bare = at("bare", "3 11 2", NO_VENV);
        let new = at("new", "3 15 0", "");
        let free = at("free", "3 14 1", "not the standard CPython\\n");
        let good = at("good", "3 12 1", "");
        let other = at("other", "3 13 0", "");
        let find = |names: &[&PathBuf]| {
            let names: Vec<PathBuf> = names.iter().copied().cloned().collect();
            find_among(&names, OLDEST)
        };
        let all = [&absent, &old, &bare, &new, &free, &good, &other];
        assert_eq!(find(&all).unwrap().program, good);
        let found = find(&all[..5]).unwrap().to_string();
        assert_eq!(
            found,
            format!("Python 3.15.0 ({}), newer than 3.14, the newest tested", new.display())
        );
        assert_eq!(find(&[&bare, &free]).unwrap().program, free);
        let again = at("again", "3 11 2", NO_VENV);
        let error = find(&[&old, &bare, &again]).unwrap_err().to_string();
        let (old, bare) = (old.display(), bare.display());
        let found = format!(
            "(found Python 3.9.19 ({old}), older than 3.10; \
             Python 3.11.2 ({bare}), without `venv` and `ensurepip`)"
        );
        assert!(error.contains(&found) && error.contains("apt install python3-venv"), "{error}");
        assert!(find(&[&absent]).unwrap_err().to_string().contains("(none found)"));
    }

    #[test]
    fn changed_environments_are_not_up_to_date() {
        let folder = tempfile::tempdir().unwrap();
        let program = fake(folder.path(), "python3", "3 11 2", "");
        let found = Found { program, version: [3, 11, 2], problem: None };
        let at = |name: &str, requirements: &str| {
            Environment::new(folder.path().join(name), requirements.to_owned())
        };
        let environment = at("venv", "a==1\n");
        assert!(!environment.is_up_to_date(&["a"]));
        environment.create_with(&found).unwrap();
        assert!(!environment.is_up_to_date(&["a"]), "pip was killed");
        environment.finish().unwrap();
        assert!(environment.is_up_to_date(&["a"]));
        assert!(!environment.is_up_to_date(&["gone"]), "a module cannot be imported");
        assert!(!at("venv", "a==2\n").is_up_to_date(&["a"]), "the pins have changed");

        fs::rename(folder.path().join("venv"), folder.path().join("moved")).unwrap();
        assert!(
            !at("moved", "a==1\n").is_up_to_date(&["a"]),
            "its scripts refer to the old folder"
        );
        fs::rename(folder.path().join("moved"), folder.path().join("venv")).unwrap();
        assert!(environment.is_up_to_date(&["a"]));

        fake(&folder.path().join("venv/bin"), "python", "3 13 1", "");
        assert!(!environment.is_up_to_date(&["a"]), "the system's Python was upgraded");
        fs::remove_file(environment.python()).unwrap();
        assert!(!environment.is_up_to_date(&["a"]), "the system's Python was removed");

        environment.create_with(&found).unwrap();
        assert!(!environment.is_up_to_date(&["a"]), "not finished");
        environment.finish().unwrap();
        assert!(environment.is_up_to_date(&["a"]));
    }

    #[test]
    fn errors_name_the_folder_that_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let program = fake(folder.path(), "python3", "3 11 2", "");
        let found = Found { program, version: [3, 11, 2], problem: None };
        let environment = Environment::new(file.join("venv"), String::new());
        let path = environment.folder().display().to_string();
        for error in [environment.create_with(&found).err(), environment.finish().err()] {
            assert!(format!("{:#}", error.unwrap()).contains(&path));
        }
    }

    #[test]
    fn only_package_sources_and_network_settings_are_kept() {
        let removed = [
            "PYTHONPATH",
            "PYTHONHOME",
            "PYTHONIOENCODING",
            "PYTHONSTARTUP",
            "PIP_USER",
            "PIP_TARGET",
            "PIP_PREFIX",
            "PIP_CONSTRAINT",
            "PIP_REQUIRE_VIRTUALENV",
            "PIP_NO_DEPS",
            "VIRTUAL_ENV",
            "CONDA_PREFIX",
            "JUPYTER_PATH",
            "JUPYTER_CONFIG_DIR",
            "IPYTHONDIR",
        ];
        for variable in removed {
            assert!(is_user_setting(variable), "{variable}");
        }
        let kept = ["PATH", "HOME", "HTTPS_PROXY", "SSL_CERT_FILE", "PYENV_VERSION", "LC_ALL"];
        for variable in kept.into_iter().chain(KEPT_VARIABLES) {
            assert!(!is_user_setting(variable), "{variable}");
        }
    }

    /// The output of a real Python, if there is one, in a folder with modules that have the names
    /// of standard ones.
    fn python_output(script: &str) -> Option<String> {
        let Ok(found) = find(OLDEST) else {
            println!("skipped: no Python found");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        for name in ["random.py", "queue.py", "token.py", "stranger.py"] {
            fs::write(folder.path().join(name), "raise SystemExit('a stranger')").unwrap();
        }
        let mut python = python(found.program);
        python.args(["-c", script]).current_dir(folder.path());
        // As if this process had inherited them.
        python.env("PYTHONPATH", folder.path()).env("PYTHONHOME", folder.path());
        python.env("PYTHONIOENCODING", "ascii").env("LC_ALL", "zh_CN.GBK");
        Some(output(&mut python).unwrap())
    }

    #[test]
    fn modules_in_the_current_folder_are_ignored() {
        let script = "import random, queue, token\n\
                      try: import stranger\n\
                      except ImportError: print('ignored')";
        assert!(python_output(script).is_none_or(|printed| printed == "ignored"));
    }

    #[test]
    fn python_uses_utf_8_in_any_locale() {
        let text = "Łódź 损失 ∞";
        let script = format!("import sys; print('{text}', sys.stdin.encoding, open(0).encoding)");
        let expected = format!("{text} utf-8 utf-8");
        let printed = python_output(&script).map(|it| it.to_lowercase().replace("utf8", "utf-8"));
        assert!(printed.is_none_or(|it| it == expected.to_lowercase()), "wrong encoding");
    }

    #[test]
    fn package_names_end_before_conditions_and_comments() {
        let text = "# Text\n\na\nb-c<26\nd==1 ; x == 'y'\ne  # Text\n";
        assert_eq!(package_names(text).collect::<Vec<_>>(), ["a", "b-c", "d", "e"]);
    }
}
