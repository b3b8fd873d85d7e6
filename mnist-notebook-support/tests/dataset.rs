//! MNIST as `get_datasets` returns it, and errors for bad files.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use candle_core::{DType, Device, Tensor};
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use mnist_notebook_support::random::{Key, bits};
use mnist_notebook_support::{
    DataError, Dataset, Error, get_datasets, get_datasets_from, get_fashion_datasets,
};
use tempfile::TempDir;

const TRAIN_IMAGES: &str = "train-images-idx3-ubyte";
const TRAIN_LABELS: &str = "train-labels-idx1-ubyte";
const TEST_IMAGES: &str = "t10k-images-idx3-ubyte";
const TEST_LABELS: &str = "t10k-labels-idx1-ubyte";
const NAMES: [&str; 4] = [TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS];

fn project_file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../data").join(format!("{name}.gz"))
}

fn gzipped(name: &str) -> Vec<u8> {
    std::fs::read(project_file(name)).unwrap()
}

fn raw(name: &str) -> Vec<u8> {
    let mut content = Vec::new();
    std::io::copy(&mut GzDecoder::new(gzipped(name).as_slice()), &mut content).unwrap();
    content
}

/// A folder with good copies of all files except one.
fn folder_without(name: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for other in NAMES.into_iter().filter(|other| *other != name) {
        std::fs::copy(project_file(other), dir.path().join(format!("{other}.gz")))
            .unwrap();
    }
    dir
}

fn load(dir: &Path) -> Result<(Dataset, Dataset), Error> {
    get_datasets_from(dir, &Device::Cpu)
}

/// Reproducible random numbers below a bound.
fn random_below(bound: usize, count: usize, seed: i64) -> Vec<usize> {
    let numbers =
        bits(Key::new(seed), count, &Device::Cpu).unwrap().to_vec1::<u32>().unwrap();
    numbers.into_iter().map(|number| number as usize % bound).collect()
}

/// Asserts that the error names the damaged file and the problem.
#[track_caller]
fn assert_damaged(dir: &Path, file: &str, problem: &str) {
    let error = load(dir).unwrap_err();
    let Some(DataError::Damaged { path, .. }) = error.downcast_ref() else {
        panic!("{error:?}")
    };
    assert_eq!(*path, dir.join(file));
    let message = error.to_string();
    assert!(message.contains(problem), "{message}");
    assert!(message.contains("replace it with a good copy"), "{message}");
}

fn class_counts(dataset: &Dataset) -> [usize; 10] {
    let mut counts = [0; 10];
    for label in dataset.label().to_vec1::<u32>().unwrap() {
        counts[label as usize] += 1;
    }
    counts
}

#[test]
fn datasets_have_the_tutorials_shapes_and_types() {
    let (train_ds, test_ds) = get_datasets(&Device::Cpu).unwrap();
    for (dataset, len) in [(&train_ds, 60_000), (&test_ds, 10_000)] {
        assert_eq!(dataset.len(), len);
        assert!(!dataset.is_empty());
        assert_eq!(dataset.image().dims(), [len, 28, 28, 1]);
        assert_eq!(dataset.image().dtype(), DType::F32);
        assert_eq!(dataset.label().dims(), [len]);
        assert_eq!(dataset.label().dtype(), DType::U32);
    }
}

/// The bits of the 256 pixel values that JAX computes by the tutorial's own line.
fn pixels_of_jax() -> Vec<u32> {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/pixels.json");
    let golden: serde_json::Value =
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    serde_json::from_value(golden["values"].clone()).unwrap()
}

#[test]
fn pixels_are_the_tutorials_bit_for_bit() {
    let golden = pixels_of_jax();
    let (train_ds, test_ds) = get_datasets(&Device::Cpu).unwrap();
    for (dataset, name) in [(train_ds, TRAIN_IMAGES), (test_ds, TEST_IMAGES)] {
        let pixels = dataset.image().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let bytes = &raw(name)[16..];
        assert_eq!(pixels.len(), bytes.len());
        for (pixel, &byte) in pixels.iter().zip(bytes) {
            assert_eq!(
                pixel.to_bits(),
                golden[usize::from(byte)],
                "byte {byte} in {name}"
            );
        }
        assert!((0..=u8::MAX).all(|byte| bytes.contains(&byte)), "{name}");
    }
}

#[test]
fn class_counts_are_those_of_mnist() {
    let (train_ds, test_ds) = get_datasets(&Device::Cpu).unwrap();
    assert_eq!(
        class_counts(&train_ds),
        [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    );
    assert_eq!(
        class_counts(&test_ds),
        [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    );
}

#[test]
fn raw_and_gzipped_files_give_the_same_data() {
    let dir = folder_without(TEST_LABELS);
    std::fs::write(dir.path().join(TEST_LABELS), raw(TEST_LABELS)).unwrap();
    let (_, mixed) = load(dir.path()).unwrap();
    let (_, gzipped) = get_datasets(&Device::Cpu).unwrap();
    assert_eq!(
        mixed.label().to_vec1::<u32>().unwrap(),
        gzipped.label().to_vec1::<u32>().unwrap()
    );
}

/// Asserts that a folder with only this file has the labels of the test set.
#[track_caller]
fn assert_has_test_labels(dir: &Path) {
    let error = load(dir).unwrap_err();
    let Some(DataError::Missing { path, .. }) = error.downcast_ref() else {
        panic!("{error:?}")
    };
    // The file that is read after the labels of the test set.
    assert_eq!(*path, dir.join(TRAIN_LABELS));
}

#[test]
fn files_are_found_under_the_names_and_in_the_folders_in_use() {
    for (file, content) in [
        ("t10k-labels.idx1-ubyte", raw(TEST_LABELS)),
        ("t10k-labels.idx1-ubyte.gz", gzipped(TEST_LABELS)),
        ("t10k-labels-idx1-ubyte.gz", raw(TEST_LABELS)),
        ("t10k-labels-idx1-ubyte", gzipped(TEST_LABELS)),
        ("t10k-labels-idx1-ubyte/t10k-labels-idx1-ubyte", raw(TEST_LABELS)),
        ("raw/t10k-labels-idx1-ubyte.gz", gzipped(TEST_LABELS)),
        ("MNIST/raw/t10k-labels-idx1-ubyte", raw(TEST_LABELS)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        assert_has_test_labels(dir.path());
    }
}

#[test]
fn another_dataset_beside_this_one_does_no_harm() {
    let dir = folder_without(TEST_LABELS);
    let beside = |folder: &str, content: &[u8]| {
        let folder = dir.path().join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join(TEST_LABELS), content).unwrap();
    };
    // Looked at first, as its name comes first; these are the labels of another set.
    beside("FashionMNIST/raw", &raw(TRAIN_LABELS));
    std::fs::create_dir(dir.path().join("lost+found")).unwrap();
    std::fs::write(dir.path().join("lost+found/raw"), "a file, not a folder").unwrap();
    let error = load(dir.path()).unwrap_err();
    assert!(matches!(error.downcast_ref(), Some(DataError::Missing { .. })), "{error}");
    beside("MNIST/raw", b"damaged");
    let error = load(dir.path()).unwrap_err();
    let Some(DataError::Damaged { path, .. }) = error.downcast_ref() else {
        panic!("{error}")
    };
    assert_eq!(*path, dir.path().join("MNIST/raw").join(TEST_LABELS));
    beside("MNIST/raw", &raw(TEST_LABELS));
    load(dir.path()).unwrap();
}

#[test]
fn images_stay_of_a_float_type() {
    let (_, test_ds) = get_datasets(&Device::Cpu).unwrap();
    let few = test_ds.slice(0, 2).unwrap();
    assert!(few.to_dtype(DType::F64).is_ok());
    assert!(matches!(few.to_dtype(DType::U8), Err(Error::DType { .. })));
}

#[test]
fn a_good_copy_is_preferred_to_a_bad_one() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(format!("{TEST_LABELS}.gz")), "").unwrap();
    std::fs::write(dir.path().join(TEST_LABELS), raw(TEST_LABELS)).unwrap();
    assert_has_test_labels(dir.path());
}

#[test]
fn a_file_of_another_dataset_is_named() {
    let floats = [&[0, 0, 0x0d, 2, 0, 0, 0, 3, 0, 0, 0, 2][..], &[0; 24]].concat();
    for (name, content, found) in [
        (TRAIN_LABELS, raw(TEST_LABELS), "t10k-labels-idx1-ubyte of MNIST"),
        (TEST_LABELS, raw(TRAIN_IMAGES), "an IDX file of 60000 × 28 × 28 values"),
        (TEST_LABELS, floats, "an IDX file of 3 × 2 values"),
    ] {
        let dir = folder_without(name);
        let file = dir.path().join(name);
        std::fs::write(&file, content).unwrap();
        let error = load(dir.path()).unwrap_err();
        let Some(DataError::OtherDataset { path, .. }) = error.downcast_ref() else {
            panic!("{error:?}")
        };
        assert_eq!(*path, file);
        let message = error.to_string();
        for part in [
            "is not MNIST's file of that name",
            found,
            "MNIST_DATA_DIR",
            "Dataset::new",
        ] {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }
}

#[test]
fn the_error_for_a_missing_file_says_what_to_do() {
    for name in NAMES {
        let dir = folder_without(name);
        let error = load(dir.path()).unwrap_err();
        let Some(DataError::Missing { path, .. }) = error.downcast_ref() else {
            panic!("{error:?}")
        };
        assert_eq!(*path, dir.path().join(name));
        let message = error.to_string();
        for part in [name, ".gz", "four MNIST files", "MNIST_DATA_DIR", "download"] {
            assert!(message.contains(part), "{part:?} is not in: {message}");
        }
    }
}

#[test]
fn a_folder_that_does_not_exist_is_named() {
    let message = load(Path::new("/no/such/folder")).unwrap_err().to_string();
    assert!(message.contains("/no/such/folder"), "{message}");
}

#[test]
fn empty_short_and_long_files_are_refused() {
    for name in [TRAIN_IMAGES, TEST_LABELS] {
        let dir = folder_without(name);
        let (path, content) = (dir.path().join(name), raw(name));
        std::fs::write(&path, "").unwrap();
        assert_damaged(dir.path(), name, "0 bytes instead of");
        std::fs::write(&path, &content[..content.len() - 1]).unwrap();
        assert_damaged(
            dir.path(),
            name,
            &format!("{} bytes instead of", content.len() - 1),
        );
        std::fs::write(&path, [&content[..], b"x"].concat()).unwrap();
        assert_damaged(dir.path(), name, &format!("more than {} bytes", content.len()));
    }
}

#[test]
fn empty_invalid_and_oversized_gzip_files_are_refused() {
    let dir = folder_without(TEST_LABELS);
    let name = format!("{TEST_LABELS}.gz");
    let path = dir.path().join(&name);
    std::fs::write(&path, "").unwrap();
    assert_damaged(dir.path(), &name, "0 bytes instead of");
    std::fs::write(&path, "<!DOCTYPE html>").unwrap();
    assert_damaged(dir.path(), &name, "no IDX file, gzipped or not");
    std::fs::write(&path, &gzipped(TEST_LABELS)[..9]).unwrap();
    assert_damaged(dir.path(), &name, "cannot be read");
    // Decompresses to far more than the labels; reading stops as soon as that is clear.
    let mut zeros = GzEncoder::new(File::create(&path).unwrap(), Compression::fast());
    std::io::copy(&mut std::io::repeat(0).take(50_000_000), &mut zeros).unwrap();
    zeros.finish().unwrap();
    assert_damaged(dir.path(), &name, "more than 10008 bytes");
}

#[test]
fn a_folder_in_place_of_a_file_is_refused() {
    let dir = folder_without(TEST_LABELS);
    std::fs::create_dir(dir.path().join(TEST_LABELS)).unwrap();
    assert_damaged(dir.path(), TEST_LABELS, "cannot be read");
}

#[test]
fn a_file_in_place_of_the_folder_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = load(&file).unwrap_err();
    assert!(
        matches!(error.downcast_ref(), Some(DataError::Missing { .. })),
        "{error:?}"
    );
}

/// Whether a file is refused as damaged. The files after it are missing, so that the test is fast.
fn is_refused(name: &str, file: &str, content: &[u8]) -> bool {
    let dir = tempfile::tempdir().unwrap();
    // The order of the checks.
    let order = [TEST_LABELS, TRAIN_LABELS, TEST_IMAGES, TRAIN_IMAGES];
    for other in order.into_iter().take_while(|other| *other != name) {
        std::fs::copy(project_file(other), dir.path().join(format!("{other}.gz")))
            .unwrap();
    }
    std::fs::write(dir.path().join(file), content).unwrap();
    let Err(error) = load(dir.path()) else { return false };
    match error.downcast_ref() {
        Some(DataError::Damaged { path, .. }) => *path == dir.path().join(file),
        Some(DataError::Missing { .. }) => false,
        _ => panic!("{error}"),
    }
}

/// Prints a line even if the test passes: the test harness captures only `println!`.
fn report(kind: &str, refused: usize) {
    let mut out = std::io::stdout();
    writeln!(out, "{kind}: faults injected: {refused}, refused: {refused}, lost: 0")
        .unwrap();
}

#[test]
fn good_files_are_not_refused() {
    for name in [TEST_LABELS, TRAIN_LABELS, TEST_IMAGES] {
        assert!(!is_refused(name, name, &raw(name)), "{name}");
        assert!(!is_refused(name, &format!("{name}.gz"), &gzipped(name)), "{name}");
    }
}

#[test]
fn files_truncated_at_50_random_lengths_are_refused() {
    let mut refused = 0;
    for (seed, (name, count)) in
        [(TEST_LABELS, 20), (TRAIN_LABELS, 20), (TEST_IMAGES, 7), (TRAIN_IMAGES, 3)]
            .into_iter()
            .enumerate()
    {
        let gz = format!("{name}.gz");
        for (i, (file, content)) in
            [(name, raw(name)), (gz.as_str(), gzipped(name))].into_iter().enumerate()
        {
            // Odd numbers truncate the gzipped file.
            for (_, len) in random_below(content.len(), count, seed as i64)
                .into_iter()
                .enumerate()
                .filter(|(number, _)| number % 2 == i)
            {
                assert!(
                    is_refused(name, file, &content[..len]),
                    "{file} cut to {len} bytes"
                );
                refused += 1;
            }
        }
    }
    report("data files truncated", refused);
    assert_eq!(refused, 50);
}

#[test]
fn files_with_200_random_bits_flipped_are_refused() {
    let mut refused = 0;
    for (seed, (name, count)) in
        [(TEST_LABELS, 95), (TRAIN_LABELS, 95), (TEST_IMAGES, 7), (TRAIN_IMAGES, 3)]
            .into_iter()
            .enumerate()
    {
        let mut content = raw(name);
        for bit in random_below(content.len() * 8, count, seed as i64) {
            content[bit / 8] ^= 1 << (bit % 8);
            assert!(is_refused(name, name, &content), "{name}, bit {bit}");
            content[bit / 8] ^= 1 << (bit % 8);
            refused += 1;
        }
    }
    report("data files with a flipped bit", refused);
    assert_eq!(refused, 200);
}

#[test]
fn a_flipped_bit_in_a_gzipped_file_never_changes_the_data() {
    let mut content = gzipped(TEST_LABELS);
    // Time and operating system in the gzip header are not data.
    let header = 10;
    let bits = random_below((content.len() - header) * 8, 100, 7);
    let mut refused = 0;
    for bit in bits.iter().map(|bit| bit + header * 8) {
        content[bit / 8] ^= 1 << (bit % 8);
        // A file that is not refused has the right checksum.
        refused += usize::from(is_refused(
            TEST_LABELS,
            &format!("{TEST_LABELS}.gz"),
            &content,
        ));
        content[bit / 8] ^= 1 << (bit % 8);
    }
    assert!(refused >= 99, "{refused} of 100 refused");
}

const FOLDER_IS_GIVEN: &str = "MNIST_TEST_FOLDER_IS_GIVEN";

/// Run by the next tests in another process; does nothing if the variable is not set.
#[test]
fn load_as_another_process() {
    if std::env::var_os(FOLDER_IS_GIVEN).is_some()
        && let Err(error) = get_datasets(&Device::Cpu)
    {
        panic!("{error}");
    }
}

/// Runs the test above by a shell script, which ends in `"$0"`, in another process.
fn load_by(script: &str, dir: &Path, temporary: &Path) -> Output {
    Command::new("sh")
        .args(["-c", &format!("{script} --exact load_as_another_process")])
        .arg(std::env::current_exe().unwrap())
        .env(FOLDER_IS_GIVEN, "1")
        .env("MNIST_DATA_DIR", dir)
        .env("TMPDIR", temporary)
        .output()
        .unwrap()
}

#[test]
fn without_a_temporary_folder_copies_go_to_the_data_folder() {
    let dir = folder_without("");
    let output = load_by(r#""$0""#, dir.path(), Path::new("/no/such/folder"));
    assert!(output.status.success(), "{output:?}");
    assert_eq!(dir.path().read_dir().unwrap().count(), NAMES.len());
}

#[test]
fn the_error_without_room_for_copies_says_what_to_do() {
    let (dir, temporary) = (folder_without(""), tempfile::tempdir().unwrap());
    // The largest file that may be written is smaller than the training images, as on a full disk.
    let full = r#"trap "" XFSZ; ulimit -f 20000; "$0""#;
    let output = load_by(full, dir.path(), temporary.path());
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stdout);
    let folders = [&dir, &temporary].map(|folder| folder.path().to_str().unwrap());
    for part in [&folders[..], &["temporary copies", "set TMPDIR", "55 MB"]].concat() {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert_eq!(dir.path().read_dir().unwrap().count(), NAMES.len());
    assert_eq!(temporary.path().read_dir().unwrap().count(), 0);
}

#[test]
fn an_environment_variable_names_another_folder() {
    let run = |dir: &Path| load_by(r#""$0""#, dir, &std::env::temp_dir());
    assert!(run(project_file("").parent().unwrap()).status.success());
    let dir = tempfile::tempdir().unwrap();
    let output = run(dir.path());
    let message = String::from_utf8_lossy(&output.stdout);
    assert!(!output.status.success());
    assert!(message.contains(dir.path().to_str().unwrap()), "{message}");
    // An empty value counts as not set.
    assert!(run(Path::new("")).status.success());
}

/// Run by the next test in another process; does nothing if the variable is not set.
#[test]
fn load_fashion_as_another_process() {
    if std::env::var_os(FOLDER_IS_GIVEN).is_some()
        && let Err(error) = get_fashion_datasets(&Device::Cpu)
    {
        panic!("{error}");
    }
}

#[test]
fn the_error_for_missing_fashion_mnist_says_how_to_get_it() {
    let dir = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "load_fashion_as_another_process"])
        .env(FOLDER_IS_GIVEN, "1")
        .env("FASHION_MNIST_DATA_DIR", dir.path())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let message = String::from_utf8_lossy(&output.stdout);
    let folder = dir.path().to_str().unwrap();
    for part in
        [folder, "four Fashion-MNIST files", "FASHION_MNIST_DATA_DIR", "download"]
    {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
}

#[test]
fn fashion_mnist_has_equal_class_counts() {
    if !Path::new("/usr/share/datasets/fashion-mnist").exists() {
        println!("skipped: Debian's package dataset-fashion-mnist is not installed");
        return;
    }
    let (train_ds, test_ds) = get_fashion_datasets(&Device::Cpu).unwrap();
    assert_eq!(class_counts(&train_ds), [6_000; 10]);
    assert_eq!(class_counts(&test_ds), [1_000; 10]);
}

#[test]
fn batches_and_slices_keep_images_with_their_labels() {
    let image =
        Tensor::arange(0f32, 5.0, &Device::Cpu).unwrap().reshape((5, 1, 1, 1)).unwrap();
    let label = Tensor::arange(0u32, 5, &Device::Cpu).unwrap();
    let dataset = Dataset::new(image, label).unwrap();
    let pairs = |dataset: &Dataset| {
        let images = dataset.image().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        images
            .into_iter()
            .zip(dataset.label().to_vec1::<u32>().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        pairs(&dataset.batch(&[3, 0, 3]).unwrap()),
        [(3.0, 3), (0.0, 0), (3.0, 3)]
    );
    assert_eq!(pairs(&dataset.slice(1, 2).unwrap()), [(1.0, 1), (2.0, 2)]);
    assert!(dataset.batch(&[5]).is_err());
    assert!(dataset.slice(4, 2).is_err());
}
