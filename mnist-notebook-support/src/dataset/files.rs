//! Finds and verifies the four files of MNIST, or of another dataset in its format.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

use flate2::read::GzDecoder;
use linen::files::FileError;
use linen::{Cause, Error, Result};
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
    /// The small ones first: errors in them are found quickly.
    pub(super) files: [IdxFile; 4],
    /// The environment variable that names a folder with the files.
    pub(super) variable: &'static str,
    /// What to do if a file is missing.
    remedy: &'static str,
}

pub(super) static MNIST: DatasetFiles = DatasetFiles {
    files: idx_files([
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ]),
    variable: "MNIST_DATA_DIR",
    remedy: "set MNIST_DATA_DIR to a folder with the four MNIST files, restore the project's \
             data folder, or enable the cargo feature `download`",
};

pub(super) static FASHION_MNIST: DatasetFiles = DatasetFiles {
    files: idx_files([
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ]),
    variable: "FASHION_MNIST_DATA_DIR",
    remedy: "install Debian's or Ubuntu's package dataset-fashion-mnist, set \
             FASHION_MNIST_DATA_DIR to a folder with the four Fashion-MNIST files, or enable \
             the cargo feature `download`",
};

const fn idx_files(
    [test_labels, train_labels, test_images, train_images]: [&str; 4],
) -> [IdxFile; 4] {
    [
        IdxFile { name: "t10k-labels-idx1-ubyte", size: 10_008, sha256: hex(test_labels) },
        IdxFile { name: "train-labels-idx1-ubyte", size: 60_008, sha256: hex(train_labels) },
        IdxFile { name: "t10k-images-idx3-ubyte", size: 7_840_016, sha256: hex(test_images) },
        IdxFile { name: "train-images-idx3-ubyte", size: 47_040_016, sha256: hex(train_images) },
    ]
}

/// Reads the four files in a folder, gzipped or not.
///
/// The `mnist` crate panics on bad input, so it reads verified copies in a private folder.
pub(super) fn read(dataset: &DatasetFiles, dir: &Path) -> Result<Mnist> {
    let verified = tempfile::tempdir().map_err(Error::save(std::env::temp_dir()))?;
    let verified = verified.path();
    let Some(base_path) = verified.to_str() else {
        let source = std::io::Error::new(ErrorKind::InvalidFilename, "its name is not UTF-8");
        return Err(Error::Save { path: verified.to_owned(), source });
    };
    std::thread::scope(|scope| {
        let copies = dataset.files.each_ref().map(|file| {
            scope.spawn(move || {
                let content = file.read_verified(dir, dataset.remedy)?;
                let copy = verified.join(file.name);
                std::fs::write(&copy, content).map_err(Error::save(&copy))
            })
        });
        let joined = copies
            .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        joined.into_iter().collect::<Result<()>>()
    })?;
    Ok(MnistBuilder::new().base_path(base_path).finalize())
}

impl IdxFile {
    /// The name with `.gz`.
    pub(super) fn gz_name(&self) -> String {
        format!("{}.gz", self.name)
    }

    /// The uncompressed content of the file in `dir`.
    ///
    /// # Errors
    /// [`DataError::Missing`] and [`DataError::Damaged`].
    fn read_verified(&self, dir: &Path, remedy: &'static str) -> Result<Vec<u8>> {
        let (gzipped, raw) = (dir.join(self.gz_name()), dir.join(self.name));
        let (path, content) = if let Some(file) = open(&gzipped)? {
            (gzipped, self.verified(GzDecoder::new(file)))
        } else if let Some(file) = open(&raw)? {
            (raw, self.verified(file))
        } else {
            return Err(DataError::Missing { path: raw, remedy }.into());
        };
        Ok(content.map_err(|source| DataError::Damaged { path, source })?)
    }

    /// Reads and checks the uncompressed content.
    pub(super) fn verified(&self, reader: impl Read) -> Result<Vec<u8>, Cause> {
        let mut content = Vec::with_capacity(self.size as usize + 1);
        // One extra byte detects a longer file without reading all of it.
        reader.take(self.size + 1).read_to_end(&mut content).map_err(FileError::from)?;
        let found = content.len() as u64;
        if found < self.size {
            return Err(format!("it has {found} bytes instead of {}", self.size).into());
        }
        if found > self.size {
            return Err(format!("it has more than {} bytes", self.size).into());
        }
        if Sha256::digest(&content)[..] != self.sha256 {
            return Err("its SHA-256 sum differs from that of the published file".into());
        }
        Ok(content)
    }
}

/// Opens a file; `None` if it does not exist.
fn open(path: &Path) -> Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DataError::Damaged {
            path: PathBuf::from(path),
            source: FileError::from(error).into(),
        }
        .into()),
    }
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
