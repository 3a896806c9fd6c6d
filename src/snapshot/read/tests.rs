//! Reading damaged files yields entries or an error, and never a panic.

use super::*;
use crate::snapshot::bolt::{self, fnv1a};
use crate::snapshot::{content::Content, status::Status};
use std::io::Read;

const PAGE: usize = 4096;

type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

fn write(buckets: &[(&str, Pairs)]) -> Vec<u8> {
    let mut writer = bolt::Writer::new(tempfile::tempfile().unwrap()).unwrap();
    for (name, entries) in buckets {
        writer.bucket(name, entries.clone()).unwrap();
    }
    let mut bytes = vec![];
    writer.finish().unwrap().0.read_to_end(&mut bytes).unwrap();
    bytes
}

fn many(n: usize) -> Pairs {
    let entry = |i| (format!("{i:08}").into_bytes(), vec![b'v'; i % 300]);
    (0..n).map(entry).collect()
}

fn set_meta(file: &mut [u8], page: usize, at: usize, n: u64) {
    let meta = page * PAGE + 16;
    file[meta + at..][..8].copy_from_slice(&n.to_le_bytes());
    let sum = fnv1a(&file[meta..meta + 56]);
    file[meta + 56..][..8].copy_from_slice(&sum.to_le_bytes());
}

fn meta(file: &[u8], page: usize, at: usize) -> u64 {
    u64_at(file, page * PAGE + 16 + at).unwrap()
}

/// The error of reading the whole file.
fn failure(file: &[u8]) -> String {
    let all = |reader: Reader| {
        reader.each_bucket(|_, entries| entries.try_for_each(|entry| entry.map(drop)))?;
        Ok::<_, Error>(())
    };
    Reader::from_bytes(file.to_vec()).and_then(all).unwrap_err().to_string()
}

#[test]
fn reads_what_bolt_writes() {
    let long: Vec<_> = (0..9).map(|n: u8| (vec![n; 5000], vec![n])).collect();
    let big = vec![(b"k".to_vec(), vec![7; 3 << 20])];
    let buckets = [("big", big), ("empty", vec![]), ("long", long), ("many", many(50_000))];
    let bytes = write(&buckets);
    let reader = Reader::from_bytes(bytes.clone()).unwrap();
    assert_eq!(reader.size(), bytes.len() as u64);
    assert!(!reader.has_hash());
    assert!(reader.buckets().eq(buckets.iter().map(|(name, _)| name.as_bytes())));
    for (name, entries) in &buckets {
        let found = reader.bucket(name.as_bytes()).unwrap().unwrap();
        assert!(found.map(|entry| entry.unwrap()).eq(entries.iter().cloned()), "{name}");
    }
    assert!(reader.bucket(b"other").unwrap().is_none());
}

#[test]
fn a_hash_is_verified_if_there_is_one() {
    let mut bytes = write(&[("a", many(100))]);
    bytes.extend(Sha256::digest(&bytes));
    assert!(Reader::from_bytes(bytes.clone()).unwrap().has_hash());
    bytes[5000] ^= 1;
    assert!(matches!(Reader::from_bytes(bytes), Err(Error::Hash)));
}

#[test]
fn the_newer_intact_meta_page_counts() {
    let file = write(&[("a", many(10))]);
    let root = meta(&file, 0, 16);
    for (newer, older) in [(0, 1), (1, 0)] {
        let mut file = file.clone();
        set_meta(&mut file, newer, 48, 9);
        set_meta(&mut file, older, 16, 77);
        assert!(Reader::from_bytes(file.clone()).is_ok());
        file[newer * PAGE + 16 + 56] ^= 1;
        assert_eq!(failure(&file), "page 77: not among the file's 5 pages");
        set_meta(&mut file, older, 16, root);
        assert!(Reader::from_bytes(file.clone()).is_ok());
        file[older * PAGE + 16 + 56] ^= 1;
        assert!(matches!(Reader::from_bytes(file), Err(Error::NotBolt)));
    }
}

#[test]
fn other_page_sizes() {
    for size in [512, 1024, 1 << 16] {
        // A leaf with one inline bucket, which has one entry.
        let inline = [&[0; 16][..], &leaf(0, 0, b"key", b"value")].concat();
        let mut file = vec![0; 4 * size];
        let root = leaf(3, IS_BUCKET, b"bucket", &inline);
        file[3 * size..][..root.len()].copy_from_slice(&root);
        for page in 0..2 {
            let mut meta = [0xED0C_DAED_u32, 2, size as u32, 0].map(u32::to_le_bytes).concat();
            meta.extend([3, 0, 2, 4, page].map(u64::to_le_bytes).concat());
            meta.extend(fnv1a(&meta).to_le_bytes());
            file[page as usize * size + 16..][..64].copy_from_slice(&meta);
        }
        for torn in [size, 0] {
            let mut file = file.clone();
            file[torn + 16..][..64].fill(1);
            let reader = Reader::from_bytes(file).unwrap();
            let entries: Result<Vec<_>> = reader.bucket(b"bucket").unwrap().unwrap().collect();
            assert_eq!(entries.unwrap(), [(b"key".to_vec(), b"value".to_vec())]);
        }
    }
}

/// A page with one entry.
fn leaf(id: u64, flags: u32, key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut page = id.to_le_bytes().to_vec();
    page.extend([2, 0, 1, 0, 0, 0, 0, 0]);
    let element = [flags, 16, key.len() as u32, value.len() as u32];
    page.extend(element.map(u32::to_le_bytes).concat());
    [&page, key, value].concat()
}

#[test]
fn what_is_wrong_is_named() {
    // Two leaves and their branch, then the root.
    let file = write(&[("a", many(100))]);
    let root = meta(&file, 0, 16) as usize;
    let branch = root - 1;
    let with = |at: usize, bytes: &[u8]| {
        let mut file = file.clone();
        file[at..at + bytes.len()].copy_from_slice(bytes);
        failure(&file)
    };
    let child = branch * PAGE + 16 + 8;
    let leaf = 3 * PAGE;
    let cases = [
        (with(child, &[branch as u8]), "page 5: is in two places"),
        (with(child, &[4]), "page 4: is in two places"),
        (with(child, &[root as u8]), "page 6: is in two places"),
        (with(child, &[1]), "page 1: not among the file's 7 pages"),
        (
            with(child + 7, &[255]),
            "page 18374686479671623683: not among the file's 7 pages",
        ),
        (with(leaf, &[9]), "page 3: holds another page's id"),
        (with(leaf + 8, &[16]), "page 3: is neither leaf nor branch: flags 0x10"),
        (with(leaf + 10, &[255, 255]), "page 3: has no room for 65535 entries"),
        (with(leaf + 12, &[4]), "page 3: goes on for 4 pages, past the last"),
        (with(leaf + 12, &[1]), "page 4: is in two places"),
        (
            with(leaf + 15, &[255]),
            "page 3: goes on for 4278190080 pages, past the last",
        ),
        (with(leaf + 16 + 4, &[1, 0]), "page 3: entry 0 is not within the page"),
        (
            with(leaf + 16 + 8, &[0, 0, 1]),
            "page 3: entry 0 is not within the page",
        ),
        (
            with(leaf + 16 + 12, &[255; 4]),
            "page 3: entry 0 is not within the page",
        ),
        // Overlaps the entry after it.
        (with(leaf + 16 + 12, &[2]), "page 3: entry 1 is not within the page"),
        (with(root * PAGE + 16, &[0]), "page 6: \"a\" is not a bucket"),
    ];
    for (found, expected) in cases {
        assert_eq!(found, expected);
    }
    let mut swapped = file.clone();
    swapped[child..child + 8].copy_from_slice(&4_u64.to_le_bytes());
    swapped[child + 16..child + 24].copy_from_slice(&3_u64.to_le_bytes());
    assert_eq!(failure(&swapped), "page 3: entry 0 is out of order");
    let truncated = "the snapshot is truncated: 28672 bytes are in use, but the file has only 24576";
    assert_eq!(failure(&file[..file.len() - PAGE]), truncated);
    assert_eq!(failure(&[]), Error::NotBolt.to_string());
    let error = Reader::open("/nonexistent").err().unwrap().to_string();
    assert!(
        error.starts_with("cannot read the snapshot at byte 0: No such file"),
        "{error}"
    );
}

#[test]
fn a_page_in_two_buckets_is_refused() {
    let mut file = write(&[("a", many(3)), ("b", many(3))]);
    let root = meta(&file, 0, 16) as usize * PAGE;
    let b = file[root..].iter().rposition(|byte| *byte == b'b').unwrap();
    file[root + b + 1] = 3;
    assert_eq!(failure(&file), "page 3: is in two places");
}

/// A generator of numbers: xorshift64*.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) as usize % n
    }
}

fn damage(file: &mut Vec<u8>, random: &mut Random) {
    let numbers = [0, 1, 2, 3, 5, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX];
    let pages = file.len() / PAGE;
    for _ in 0..=random.below(3) {
        if file.len() < 2 * PAGE {
            return;
        }
        let at = random.below(file.len());
        match random.below(8) {
            0 => file.truncate(at),
            1 => file[at] ^= 1 << random.below(8),
            2 => file[at] = random.below(256) as u8,
            // In meta pages, which have checksums.
            3 => {
                let field = [8, 16, 32, 40, 48][random.below(5)];
                let n = [numbers[random.below(numbers.len())], random.below(pages + 2) as u64];
                let n = n[random.below(2)];
                (0..2).for_each(|page| set_meta(file, page, field, n));
            }
            // In headers and tables.
            4..7 => {
                let at = at / PAGE * PAGE + random.below(20) * 4;
                let n = [numbers[random.below(numbers.len())], random.below(pages + 2) as u64];
                let n = n[random.below(2)].to_le_bytes();
                let len = (1 << random.below(4)).min(file.len() - at.min(file.len()));
                file[at..at + len].copy_from_slice(&n[..len]);
            }
            _ => {
                let (from, to) = (random.below(pages) * PAGE, at / PAGE * PAGE);
                if from.max(to) + PAGE <= file.len() {
                    file.copy_within(from..from + PAGE, to);
                }
            }
        }
    }
    if random.below(4) == 0 {
        file.extend(Sha256::digest(&*file));
    }
}

/// Damages `file` many times: reading ends soon, and yields no more bytes than the file has.
fn fuzz(file: &[u8], cases: usize) {
    let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ file.len() as u64);
    let mut intact = 0;
    for case in 0..cases {
        let mut file = file.to_vec();
        damage(&mut file, &mut random);
        let len = file.len();
        let Ok(reader) = Reader::from_bytes(file) else { continue };
        let mut bytes = 0;
        let all = reader.each_bucket(|_, entries| {
            let sum = entries
                .by_ref()
                .try_fold(0, |sum, e| e.map(|(key, value)| sum + key.len() + value.len()));
            assert!(sum.is_ok() || entries.next().is_none());
            bytes += sum?;
            Ok::<_, Error>(())
        });
        assert!(bytes <= len, "case {case}: {bytes} of {len}");
        let names: Vec<_> = reader.buckets().map(<[u8]>::to_vec).collect();
        for name in names {
            let _ = reader.bucket(&name).map(|bucket| bucket.unwrap().count());
        }
        let (content, status) = (Content::read(&reader), Status::read(&reader));
        assert!(all.is_ok() || (content.is_err() && status.is_err()), "case {case}");
        intact += usize::from(all.is_ok());
    }
    assert!((cases / 50..cases).contains(&intact), "{intact} of {cases}");
}

#[test]
fn damage_is_no_danger() {
    let long = (0..9).map(|n: u8| (vec![n; 3000], vec![n])).collect();
    let buckets = [("a", many(300)), ("empty", vec![]), ("key", many(3)), ("long", long)];
    fuzz(&write(&buckets), 1_000);
}
