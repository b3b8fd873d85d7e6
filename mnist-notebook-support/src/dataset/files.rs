//! Finds and verifies the four files of MNIST, or of another dataset in its format.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::bufread::GzDecoder;
use linen::files::FileError;
use linen::{Cause, Result};
use mnist::{Mnist, MnistBuilder};
use sha2::{Digest, Sha256};

use crate::error::DataError;

/// One of the four files, in IDX format.
pub(super) struct IdxFile {
    /// The name without `.gz`.
    pub(super) name: &'static str,
    /// The uncompressed size in bytes.
    pub(super) size: u64,
    sha256: [u8; 32],
}

/// The files of a dataset.
pub(super) struct DatasetFiles {
    name: &'static str,
    /// The small ones first: errors in them are found quickly.
    pub(super) files: [IdxFile; 4],
    /// The environment variable that names a folder with the files.
    pub(super) variable: &'static str,
    /// What to do if a file is missing.
    remedy: &'static str,
    /// Where downloads are kept, below this crate's cache folder.
    #[cfg(feature = "download")]
    pub(super) cache: &'static str,
    /// URLs of folders with the gzipped files.
    #[cfg(feature = "download")]
    pub(super) mirrors: [&'static str; 2],
}

pub(super) static MNIST: DatasetFiles = DatasetFiles {
    name: "MNIST",
    files: idx_files([
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ]),
    variable: "MNIST_DATA_DIR",
    remedy: if cfg!(feature = "download") {
        "put the four MNIST files there, or unset MNIST_DATA_DIR to have them downloaded"
    } else {
        "set MNIST_DATA_DIR to a folder with the four MNIST files, restore the project's data \
         folder, or enable the cargo feature `download`"
    },
    #[cfg(feature = "download")]
    cache: "",
    #[cfg(feature = "download")]
    mirrors: [
        "https://storage.googleapis.com/cvdf-datasets/mnist",
        "https://ossci-datasets.s3.amazonaws.com/mnist",
    ],
};

pub(super) static FASHION_MNIST: DatasetFiles = DatasetFiles {
    name: "Fashion-MNIST",
    files: idx_files([
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ]),
    variable: "FASHION_MNIST_DATA_DIR",
    remedy: if cfg!(feature = "download") {
        "put the four Fashion-MNIST files there, or unset FASHION_MNIST_DATA_DIR to have them \
         downloaded"
    } else {
        "install Debian's or Ubuntu's package dataset-fashion-mnist, set FASHION_MNIST_DATA_DIR \
         to a folder with the four Fashion-MNIST files, or enable the cargo feature `download`"
    },
    #[cfg(feature = "download")]
    cache: "fashion-mnist",
    #[cfg(feature = "download")]
    mirrors: [
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets",
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion",
    ],
};

const fn idx_files(
    [test_labels, train_labels, test_images, train_images]: [&str; 4],
) -> [IdxFile; 4] {
    [
        IdxFile {
            name: "t10k-labels-idx1-ubyte",
            size: 10_008,
            sha256: hex(test_labels),
        },
        IdxFile {
            name: "train-labels-idx1-ubyte",
            size: 60_008,
            sha256: hex(train_labels),
        },
        IdxFile {
            name: "t10k-images-idx3-ubyte",
            size: 7_840_016,
            sha256: hex(test_images),
        },
        IdxFile {
            name: "train-images-idx3-ubyte",
            size: 47_040_016,
            sha256: hex(train_images),
        },
    ]
}

/// Reads the four files in a folder or below, gzipped or not.
///
/// The `mnist` crate panics on bad input and takes only a folder, so it reads verified copies.
pub(super) fn read(dataset: &DatasetFiles, dir: &Path) -> Result<Mnist> {
    let contents = std::thread::scope(|scope| {
        let threads = dataset
            .files
            .each_ref()
            .map(|file| scope.spawn(|| file.read_verified(dataset, dir)));
        let joined = threads.map(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        joined.into_iter().collect::<Result<Vec<_>>>()
    })?;
    let mut attempts = Vec::new();
    for folder in [&std::env::temp_dir(), dir] {
        match parse_copies(&dataset.files, &contents, folder) {
            Ok(mnist) => return Ok(mnist),
            Err(error) => attempts.push(format!("{}: {error}", folder.display())),
        }
    }
    Err(DataError::Copies { attempts: attempts.join("; ") }.into())
}

/// Has the `mnist` crate parse copies of the files, in a private folder below `folder`.
fn parse_copies(
    files: &[IdxFile],
    contents: &[Vec<u8>],
    folder: &Path,
) -> std::io::Result<Mnist> {
    let copies = tempfile::tempdir_in(folder)?;
    let Some(base_path) = copies.path().to_str() else {
        return Err(std::io::Error::new(
            ErrorKind::InvalidFilename,
            "its name is not UTF-8",
        ));
    };
    for (file, content) in files.iter().zip(contents) {
        std::fs::write(copies.path().join(file.name), content)?;
    }
    Ok(MnistBuilder::new().base_path(base_path).finalize())
}

impl IdxFile {
    /// The name with `.gz`.
    pub(super) fn gz_name(&self) -> String {
        format!("{}.gz", self.name)
    }

    /// The uncompressed content of the first good copy in `dir` or [below](folders), under any of
    /// the names in use.
    ///
    /// # Errors
    /// What is wrong with the first copy; [`DataError::Missing`] if there is none.
    fn read_verified(&self, dataset: &DatasetFiles, dir: &Path) -> Result<Vec<u8>> {
        let dotted = self.name.replace("-idx", ".idx");
        let names = [self.gz_name(), self.name.into(), format!("{dotted}.gz"), dotted];
        let mut problem = None;
        for folder in folders(dir) {
            for path in names.iter().map(|name| folder.join(name)) {
                match self.read_copy(dataset, path) {
                    Ok(Some(content)) => return Ok(content),
                    Ok(None) => {}
                    // Another dataset may well be kept beside this one.
                    Err(DataError::OtherDataset { .. }) if folder != dir => {}
                    Err(error) => {
                        problem.get_or_insert(error);
                    }
                }
            }
        }
        let remedy = dataset.remedy;
        let missing = || DataError::Missing { path: dir.join(self.name), remedy };
        Err(problem.unwrap_or_else(missing).into())
    }

    /// The verified content of the file at `path`; `None` if it does not exist.
    fn read_copy(
        &self,
        dataset: &DatasetFiles,
        path: PathBuf,
    ) -> Result<Option<Vec<u8>>, DataError> {
        let content = match File::open(&path) {
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::NotFound | ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            file => file.and_then(|file| self.read_content(file)),
        };
        let damaged = |source| DataError::Damaged { path: path.clone(), source };
        let content =
            content.map_err(|error| damaged(FileError::from(error).into()))?;
        let Err(problem) = self.check(&content) else { return Ok(Some(content)) };
        Err(match self.other_dataset(&content) {
            Some(found) => {
                let DatasetFiles { name: dataset, variable, .. } = *dataset;
                DataError::OtherDataset { path, found, dataset, variable }
            }
            None => damaged(problem),
        })
    }

    /// The uncompressed content, at most one byte more than it should have. The content decides
    /// whether it is gzipped; names are often wrong.
    fn read_content(&self, file: impl Read) -> std::io::Result<Vec<u8>> {
        let mut file = BufReader::new(file);
        let is_gzipped = file.fill_buf()?.starts_with(&[0x1f, 0x8b]);
        let mut content = Vec::with_capacity(self.size as usize + 1);
        // One extra byte detects a longer file without reading all of it.
        let limit = self.size + 1;
        if is_gzipped {
            GzDecoder::new(file).take(limit).read_to_end(&mut content)?;
        } else {
            file.take(limit).read_to_end(&mut content)?;
        }
        Ok(content)
    }

    /// Checks the uncompressed content.
    fn check(&self, content: &[u8]) -> Result<(), Cause> {
        if content.first().is_some_and(|&byte| byte != 0) {
            return Err("it is no IDX file, gzipped or not".into());
        }
        let found = content.len() as u64;
        if found < self.size {
            return Err(format!("it has {found} bytes instead of {}", self.size).into());
        }
        if found > self.size {
            return Err(format!("it has more than {} bytes", self.size).into());
        }
        if Sha256::digest(content)[..] != self.sha256 {
            return Err(
                "its SHA-256 sum differs from that of the published file: bytes have \
                        changed, or it is of another dataset"
                    .into(),
            );
        }
        Ok(())
    }

    /// What the content is, if it is a whole file of another dataset.
    fn other_dataset(&self, content: &[u8]) -> Option<String> {
        let sum = Sha256::digest(content);
        for dataset in [&MNIST, &FASHION_MNIST] {
            if let Some(file) = dataset.files.iter().find(|file| sum[..] == file.sha256)
            {
                return Some(format!("{} of {}", file.name, dataset.name));
            }
        }
        let (dims, size) = idx_header(content)?;
        let is_whole = size.min(self.size + 1) == content.len() as u64;
        // With the right size it is more likely a damaged copy.
        (is_whole && size != self.size).then(|| {
            let dims: Vec<_> = dims.iter().map(u32::to_string).collect();
            format!("an IDX file of {} values", dims.join(" × "))
        })
    }

    /// Reads and checks a gzipped or raw file.
    #[cfg(feature = "download")]
    pub(super) fn verified(&self, file: impl Read) -> Result<Vec<u8>, Cause> {
        let content = self.read_content(file).map_err(FileError::from)?;
        self.check(&content)?;
        Ok(content)
    }
}

/// The folder, then those below it where archives unpack files, as far as they can be read:
/// `dir/*`, and `dir/*/raw` as in torchvision's `MNIST/raw`.
fn folders(dir: &Path) -> impl Iterator<Item = PathBuf> {
    let below = move || {
        let entries = dir.read_dir().into_iter().flatten().flatten();
        let paths = entries.map(|entry| entry.path());
        let mut folders: Vec<_> = paths.filter(|path| path.is_dir()).collect();
        folders.sort();
        let folders =
            folders.into_iter().flat_map(|folder| [folder.join("raw"), folder]);
        folders.filter(|folder| folder.read_dir().is_ok())
    };
    std::iter::once(dir.to_owned()).chain(std::iter::once_with(below).flatten())
}

/// The dimensions in the header of an IDX file, and the size in bytes that such a file has.
fn idx_header(content: &[u8]) -> Option<(Vec<u32>, u64)> {
    let [0, 0, kind, rank @ 1..=u8::MAX, dims @ ..] = content else { return None };
    let bytes_per_value = match kind {
        0x08 | 0x09 => 1,
        0x0b => 2,
        0x0c | 0x0d => 4,
        0x0e => 8,
        _ => return None,
    };
    let (rank, (dims, _)) = (usize::from(*rank), dims.as_chunks());
    let dims: Vec<_> =
        dims.get(..rank)?.iter().copied().map(u32::from_be_bytes).collect();
    let header = 4 + 4 * rank as u64;
    let values =
        dims.iter().try_fold(1u64, |count, dim| count.checked_mul(u64::from(*dim)))?;
    Some((dims, values.checked_mul(bytes_per_value)?.checked_add(header)?))
}

/// Decodes 64 hexadecimal digits.
const fn hex(digits: &str) -> [u8; 32] {
    let digits = digits.as_bytes();
    let mut bytes = [0; 32];
    let mut i = 0;
    while i < 64 {
        let value = match digits[i] {
            digit @ b'0'..=b'9' => digit - b'0',
            digit => digit - b'a' + 10,
        };
        bytes[i / 2] = bytes[i / 2] << 4 | value;
        i += 1;
    }
    bytes
}
