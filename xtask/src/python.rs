//! Python environments of the project's own, and how Python is started in them.
//!
//! What variables, an active environment or files in the current folder tell Python concerns the
//! user's own work. The project's Pythons are started as if nothing of that were there; only where
//! pip finds packages, and how it gets there, is the user's to say.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process::{command, output};
use crate::ui::Spinner;
use warm_evcxr::files;

/// A series of Python, such as 3.11.
pub(crate) type Series = (u32, u32);

/// The oldest and the newest series that the pinned packages are chosen for.
pub(crate) const OLDEST: Series = (3, 10);
pub(crate) const NEWEST: Series = (3, 14);
/// The oldest that JAX takes, as it is pinned for comparison.
pub(crate) const OLDEST_WITH_JAX: Series = (3, 11);

/// Names under which Python may be found. The user's own choice comes first; the last one is hidden
/// where an environment is active that lacks something.
const NAMES: [&str; 7] = [
    "python3",
    "python3.14",
    "python3.13",
    "python3.12",
    "python3.11",
    "python3.10",
    "/usr/bin/python3",
];

/// Prints a line each: the program itself, its version, and what keeps it from making an
/// environment for these packages.
const PROBE: &str = "
import sys, sysconfig
print(sys.executable)
print(*sys.version_info[:3])
if sys.implementation.name != 'cpython' or sysconfig.get_config_var('Py_GIL_DISABLED'):
    print('not the common CPython')
try:
    import venv, ensurepip
    ensurepip.version()
except Exception:
    print('without `venv` and `ensurepip`')
";

/// What of pip's variables stays the user's: where packages come from, and how to get there.
const PIP: [&str; 14] = [
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
];

/// A Python to start with arguments such as `-c` or `-m`, apart from everything of the user's own.
pub fn python(program: impl AsRef<OsStr>) -> Command {
    let mut python = command(program);
    // Isolated: without the modules in the current folder, too. A variable could not say that to
    // Python 3.10.
    apart(&mut python).args(["-I", "-X", "utf8"]);
    python
}

/// Takes from a program all that the user has told other Pythons, so that those it starts are apart
/// from it, too.
pub fn apart(program: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_for_others) {
            program.env_remove(name);
        }
    }
    // In any locale; without the packages that the user has for all environments.
    program.env("PYTHONUTF8", "1").env("PYTHONNOUSERSITE", "1")
}

/// Whether a variable tells Python, pip or Jupyter something that concerns other environments.
fn is_for_others(variable: &str) -> bool {
    const STARTS: [&str; 7] =
        ["PYTHON", "PIP_", "CONDA_", "_CONDA_", "JUPYTER_", "IPYTHON", "VIRTUAL_ENV"];
    let others = ["_CE_CONDA", "_CE_M", "__PYVENV_LAUNCHER__"];
    let is_meant = STARTS.iter().any(|start| variable.starts_with(start));
    (is_meant && !PIP.contains(&variable)) || others.contains(&variable)
}

/// The packages that a file for pip names, one a line.
pub(crate) fn names(text: &str) -> impl Iterator<Item = &str> {
    let is_name = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    lines
        .filter(|line| !line.is_empty())
        .map(move |line| line.split(|letter| !is_name(letter)).next().unwrap_or_default())
}

/// A Python environment that is made in one go, and made anew when what it was made of has changed.
pub(crate) struct Environment {
    folder: PathBuf,
    wanted: String,
}

impl Environment {
    /// The environment in a folder that holds what the text `wanted` asks for.
    pub(crate) fn new(folder: PathBuf, wanted: String) -> Self {
        Self { folder, wanted }
    }

    /// Where it is.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its interpreter.
    pub(crate) fn python(&self) -> PathBuf {
        self.folder.join("bin/python")
    }

    /// Whether it was made to the end, here, of just this, and works: the system's Python that it
    /// stands on may have been removed, or may be another one by now, which looks for packages in
    /// another place.
    pub(crate) fn is_made(&self, modules: &[&str]) -> bool {
        let made = fs::read_to_string(self.stamp()).unwrap_or_default();
        // The first is loaded, which takes a moment: one with machine code shows whether that fits.
        let first = modules.first().map(|first| format!("import {first}\n")).unwrap_or_default();
        let check = format!(
            "{first}import sys\n\
             from importlib.util import find_spec\n\
             sys.exit(not all(map(find_spec, sys.argv[1:])))"
        );
        self.series().is_ok_and(|series| made == self.description(&series))
            && output(python(self.python()).args(["-c", &check]).args(modules)).is_ok()
    }

    /// Makes it anew, empty, with the first Python that can. Says which one that is.
    pub(crate) fn make(&self, oldest: Series) -> Result<String> {
        let found = find(oldest)?;
        self.make_with(&found)?;
        Ok(found.to_string())
    }

    fn make_with(&self, found: &Found) -> Result<()> {
        let folder = self.folder.display();
        files::remove(&self.folder).with_context(|| format!("cannot remove {folder}"))?;
        output(python(&found.program).args(["-m", "venv"]).arg(&self.folder)).with_context(
            || format!("cannot make a Python environment in {folder} with {found}"),
        )?;
        Ok(())
    }

    /// Installs what these arguments of `pip install` ask for.
    pub(crate) fn install(
        &self,
        arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    ) -> Result<()> {
        let _spinner = Spinner::new("pip install");
        let mut pip = python(self.python());
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        // These outrank pip's configuration file.
        pip.env("PIP_USER", "0").env("PIP_CONSTRAINT", "/dev/null");
        output(pip.args(arguments)).map(drop).context(
            "pip failed (is the package index within reach, directly or as PIP_PROXY and \
             PIP_INDEX_URL say?)",
        )
    }

    /// Notes that everything is in it: written last, so that what was killed halfway is begun anew.
    pub(crate) fn finish(&self) -> Result<()> {
        let stamp = self.stamp();
        fs::write(&stamp, self.description(&self.series()?))
            .with_context(|| format!("cannot write {}", stamp.display()))
    }

    fn stamp(&self) -> PathBuf {
        self.folder.join("made-of.txt")
    }

    fn description(&self, series: &str) -> String {
        format!("Python {series} in {}\n{}", self.folder.display(), self.wanted)
    }

    fn series(&self) -> Result<String> {
        output(python(self.python()).args(["-c", "import sys; print(*sys.version_info[:2])"]))
    }
}

/// A Python, and what keeps it from being a good choice.
#[derive(Clone, Debug)]
struct Found {
    program: PathBuf,
    version: [u32; 3],
    problem: Option<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Problem {
    /// It cannot do what is needed.
    Fatal(String),
    /// It may do; there may be no wheels for it.
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

/// The first Python that fits, else one that may.
fn find(oldest: Series) -> Result<Found> {
    find_among(&NAMES.map(PathBuf::from), oldest)
}

fn find_among(names: &[PathBuf], oldest: Series) -> Result<Found> {
    let mut others: Vec<Found> = Vec::new();
    for found in names.iter().filter_map(|name| probe(name, oldest)) {
        if found.problem.is_none() {
            return Ok(found);
        }
        // The same one under another name is no news.
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
        "no Python {} to {} that can make environments ({}): install one with its module `venv` \
         (Debian and Ubuntu: `apt install python3-venv`)",
        name(oldest),
        name(NEWEST),
        if found.is_empty() {
            "none found".to_owned()
        } else {
            format!("found {}", found.join("; "))
        },
    )
}

/// What is to be said of the Python of this name, if there is one.
fn probe(program: &Path, oldest: Series) -> Option<Found> {
    let answer = output(python(program).args(["-c", PROBE])).ok()?;
    let mut lines = answer.lines();
    let program = lines.next()?.into();
    let version: Vec<u32> = lines.next()?.split(' ').filter_map(|part| part.parse().ok()).collect();
    let version: [u32; 3] = version.try_into().ok()?;
    let lacks = lines.collect::<Vec<_>>();
    let series = (version[0], version[1]);
    let problem = if series < oldest {
        Some(Problem::Fatal(format!("older than {}", name(oldest))))
    } else if let Some(lack) = lacks.iter().find(|lack| lack.starts_with("without")) {
        Some(Problem::Fatal((*lack).to_owned()))
    } else if series > NEWEST {
        Some(Problem::Untested(format!("newer than {}, the newest tried", name(NEWEST))))
    } else {
        lacks.first().map(|lack| Problem::Untested((*lack).to_owned()))
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

    /// What stands for a Python of this version, with these lines after those that every Python
    /// prints.
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
    fn the_first_python_that_fits_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str, version: &str, problems: &str| {
            fake(folder.path(), name, version, problems)
        };
        let absent = folder.path().join("absent");
        let old = at("old", "3 9 19", "");
        let bare = at("bare", "3 11 2", NO_VENV);
        let new = at("new", "3 15 0", "");
        let free = at("free", "3 14 1", "not the common CPython\\n");
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
            format!("Python 3.15.0 ({}), newer than 3.14, the newest tried", new.display())
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
    fn an_environment_is_made_anew_when_anything_about_it_has_changed() {
        let folder = tempfile::tempdir().unwrap();
        let program = fake(folder.path(), "python3", "3 11 2", "");
        let found = Found { program, version: [3, 11, 2], problem: None };
        let at = |name: &str, wanted: &str| {
            Environment::new(folder.path().join(name), wanted.to_owned())
        };
        let environment = at("venv", "a==1\n");
        assert!(!environment.is_made(&["a"]));
        environment.make_with(&found).unwrap();
        assert!(!environment.is_made(&["a"]), "pip was killed");
        environment.finish().unwrap();
        assert!(environment.is_made(&["a"]));
        assert!(!environment.is_made(&["gone"]), "a module cannot be loaded");
        assert!(!at("venv", "a==2\n").is_made(&["a"]), "the pins have changed");

        fs::rename(folder.path().join("venv"), folder.path().join("moved")).unwrap();
        assert!(!at("moved", "a==1\n").is_made(&["a"]), "programs in it name the old place");
        fs::rename(folder.path().join("moved"), folder.path().join("venv")).unwrap();
        assert!(environment.is_made(&["a"]));

        fake(&folder.path().join("venv/bin"), "python", "3 13 1", "");
        assert!(!environment.is_made(&["a"]), "the system's Python was upgraded");
        fs::remove_file(environment.python()).unwrap();
        assert!(!environment.is_made(&["a"]), "the system's Python was removed");

        environment.make_with(&found).unwrap();
        assert!(!environment.is_made(&["a"]), "only begun anew");
        environment.finish().unwrap();
        assert!(environment.is_made(&["a"]));
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        fs::write(&file, "").unwrap();
        let program = fake(folder.path(), "python3", "3 11 2", "");
        let found = Found { program, version: [3, 11, 2], problem: None };
        let environment = Environment::new(file.join("venv"), String::new());
        let path = environment.folder().display().to_string();
        for error in [environment.make_with(&found).err(), environment.finish().err()] {
            assert!(format!("{:#}", error.unwrap()).contains(&path));
        }
    }

    #[test]
    fn only_where_packages_come_from_is_the_users_to_say() {
        let others = [
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
        for variable in others {
            assert!(is_for_others(variable), "{variable}");
        }
        let ours = ["PATH", "HOME", "HTTPS_PROXY", "SSL_CERT_FILE", "PYENV_VERSION", "LC_ALL"];
        for variable in ours.into_iter().chain(PIP) {
            assert!(!is_for_others(variable), "{variable}");
        }
    }

    /// What a real Python prints, if there is one, in a folder with modules of the names of
    /// Python's own.
    fn printed(script: &str) -> Option<String> {
        let Ok(found) = find(OLDEST) else {
            println!("skipped: there is no Python");
            return None;
        };
        let folder = tempfile::tempdir().unwrap();
        for name in ["random.py", "queue.py", "token.py", "stranger.py"] {
            fs::write(folder.path().join(name), "raise SystemExit('a stranger')").unwrap();
        }
        let mut python = python(found.program);
        python.args(["-c", script]).current_dir(folder.path());
        // As if this process had been told so.
        python.env("PYTHONPATH", folder.path()).env("PYTHONHOME", folder.path());
        python.env("PYTHONIOENCODING", "ascii").env("LC_ALL", "zh_CN.GBK");
        Some(output(&mut python).unwrap())
    }

    #[test]
    fn modules_in_the_current_folder_do_no_harm() {
        let script =
            "import random, queue, token\ntry: import stranger\nexcept ImportError: print('apart')";
        assert!(printed(script).is_none_or(|printed| printed == "apart"));
    }

    #[test]
    fn python_speaks_utf_8_in_any_locale() {
        let text = "Łódź 损失 ∞";
        let script = format!("import sys; print('{text}', sys.stdin.encoding, open(0).encoding)");
        let expected = format!("{text} utf-8 utf-8");
        let found = printed(&script).map(|printed| printed.to_lowercase().replace("utf8", "utf-8"));
        assert!(found.is_none_or(|printed| printed == expected.to_lowercase()), "wrong letters");
    }

    #[test]
    fn names_stand_before_conditions_and_notes() {
        let text = "# Text\n\na\nb-c<26\nd==1 ; x == 'y'\ne  # Text\n";
        assert_eq!(names(text).collect::<Vec<_>>(), ["a", "b-c", "d", "e"]);
    }
}
