//! What the application prints, where its image's measured configuration says that the host may read it.
//!
//! ```text
//!  application ─pipe─▶ agent ─vsock 9003─▶ lines, sanitised ─▶ allowance ─▶ the enclave's log, cut when it is long
//! ```
//!
//! Every line begins with `app: ` and holds no control character, so it can neither steer a terminal nor be taken for a line
//! of ours. What comes faster than the allowance is read, counted and dropped: neither guest nor host waits. The log is one
//! file, so that who follows it need not look for another: when it is long, its older part goes, and a line in second place
//! says which byte of the earlier file is now the first behind it ([`CUT`]).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write as _};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};

use enclos_api::log::CUT;

use crate::allowance::Allowance;
use crate::log;

/// Longest line (bytes); what is longer goes on in the next one.
const MAX_LINE: usize = 4096;

/// Bytes that an application may print at once, and per second in the long run: far above what is read, far below what
/// fills a disk unnoticed.
const BURST: u32 = 256 << 10;
const BYTES_PER_SECOND: f64 = 65_536.0;

/// Longest log (bytes), and how much of its end stays when it is cut.
const MAX_LOG: u64 = 4 << 20;
const KEPT: u64 = 2 << 20;

/// Where an application's lines go. Clones write to the same place, under the same allowance.
#[derive(Debug, Clone)]
pub(crate) struct AppLog(Arc<Mutex<Sink>>);

#[derive(Debug)]
struct Sink {
    file: Option<File>,
    allowance: Allowance,
    /// Lines since the last one that was kept.
    dropped: u64,
}

impl AppLog {
    /// To standard error, if that is a log of this enclave's own; else lines are dropped.
    pub(crate) fn on_stderr(own: bool) -> Self {
        let file = || io::stderr().as_fd().try_clone_to_owned().map(File::from);
        let file = own.then(file).and_then(Result::ok);
        Self::to(file, Allowance::new(BURST, BYTES_PER_SECOND))
    }

    fn to(file: Option<File>, allowance: Allowance) -> Self {
        Self(Arc::new(Mutex::new(Sink {
            file,
            allowance,
            dropped: 0,
        })))
    }

    /// Takes lines from `source` to its end.
    pub(crate) fn take(&self, mut source: impl Read) {
        let mut pending = Vec::new();
        let mut buffer = [0; MAX_LINE];
        loop {
            match source.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => pending.extend_from_slice(&buffer[..read]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
            let whole = whole_lines(&pending);
            self.lock().lines(&pending[..whole]);
            pending.drain(..whole);
        }
        let mut sink = self.lock();
        sink.lines(&pending);
        sink.tell_dropped();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Sink> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Length of the lines that are whole, or long enough to be cut.
fn whole_lines(pending: &[u8]) -> usize {
    let end = pending.iter().rposition(|byte| *byte == b'\n');
    match end.map_or(0, |end| end + 1) {
        0 if pending.len() >= MAX_LINE => MAX_LINE,
        whole => whole,
    }
}

impl Sink {
    fn lines(&mut self, bytes: &[u8]) {
        for line in bytes.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").unwrap_or(line);
            let (first, rest) = line.split_at(line.len().min(MAX_LINE));
            self.line(first);
            rest.chunks(MAX_LINE).for_each(|piece| self.line(piece));
        }
    }

    fn line(&mut self, line: &[u8]) {
        let text = String::from_utf8_lossy(line);
        let text = log::printable(text.trim_end_matches('\r'), MAX_LINE);
        let line = format!("app: {text}\n");
        if self
            .allowance
            .take(u32::try_from(line.len()).unwrap_or(u32::MAX))
        {
            self.tell_dropped();
            self.write(&line);
        } else {
            self.dropped += 1;
        }
    }

    fn tell_dropped(&mut self) {
        let dropped = std::mem::take(&mut self.dropped);
        if dropped > 0 {
            self.write(&format!(
                "warn: {dropped} lines of the application were dropped: they came faster than {BYTES_PER_SECOND} bytes/s\n"
            ));
        }
    }

    /// A log that cannot be written is no reason to disturb the application.
    fn write(&mut self, line: &str) {
        if let Some(file) = &mut self.file {
            let _ = file.write_all(line.as_bytes());
            let _ = cut(file);
        }
    }
}

/// Cuts a log that is too long: its first line, a line that says so, and its end stay.
fn cut(file: &mut File) -> io::Result<()> {
    let len = file.metadata()?.len();
    if len <= MAX_LOG {
        return Ok(());
    }
    let first = first_line(file)?;
    let mut tail = Vec::new();
    file.seek(SeekFrom::Start(len - KEPT))?;
    Read::by_ref(file).take(KEPT).read_to_end(&mut tail)?;
    let broken = tail.iter().position(|byte| *byte == b'\n');
    let broken = broken.map_or(tail.len(), |end| end + 1);
    let at = len - KEPT + u64::try_from(broken).unwrap_or(KEPT);
    // Opened to append: whatever is written is written at the end.
    file.set_len(first)?;
    file.write_all(format!("{CUT}{at}\n").as_bytes())?;
    file.write_all(&tail[broken..])
}

/// Length of the first line, its end included.
fn first_line(file: &mut File) -> io::Result<u64> {
    let mut head = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
    Read::by_ref(file).take(limit).read_to_end(&mut head)?;
    let end = head.iter().position(|byte| *byte == b'\n');
    Ok(end.and_then(|end| u64::try_from(end + 1).ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// What a log that begins with a line of ours becomes.
    fn logged(source: &[u8], allowance: u32) -> String {
        let (path, log) = begun(allowance);
        log.take(source);
        fs::read_to_string(path.path()).unwrap()
    }

    fn begun(allowance: u32) -> (tempfile::NamedTempFile, AppLog) {
        let path = tempfile::NamedTempFile::new().unwrap();
        fs::write(path.path(), "info: app (i-1): started\n").unwrap();
        let file = File::options().read(true).append(true).open(path.path());
        let log = AppLog::to(Some(file.unwrap()), Allowance::new(allowance, 0.0));
        (path, log)
    }

    #[test]
    fn lines_are_marked_and_harmless() {
        let text = logged(
            b"one\r\n\ninfo: ended: forged\n\x1b[2J\x07bell \xff\nunfinished",
            1000,
        );
        let expected = "info: app (i-1): started\napp: one\napp: \napp: info: ended: forged\n\
                        app:  [2J bell \u{fffd}\napp: unfinished\n";
        assert_eq!(text, expected);
    }

    #[test]
    fn endless_lines_are_cut_and_floods_are_dropped_and_counted() {
        let text = logged(&[b'x'; 3 * MAX_LINE + 1], 1 << 20);
        let lengths: Vec<usize> = text.lines().skip(1).map(str::len).collect();
        let whole = MAX_LINE + "app: ".len();
        assert_eq!(lengths, [whole, whole, whole, "app: x".len()]);
        let text = logged("01234\n".repeat(1000).as_bytes(), 110);
        assert_eq!(
            text.lines().filter(|line| *line == "app: 01234").count(),
            10
        );
        let last = text.lines().last().unwrap();
        assert!(last.starts_with("warn: 990 lines"), "{last}");
    }

    #[test]
    fn a_long_log_keeps_its_first_line_and_its_end() {
        let (path, log) = begun(1000);
        let file = File::options().append(true).open(path.path());
        let mut file = file.unwrap();
        for number in 0..MAX_LOG / 16 {
            writeln!(file, "app: {number:010}").unwrap();
        }
        let before = fs::read(path.path()).unwrap();
        log.take(b"the last".as_slice());
        let after = fs::read_to_string(path.path()).unwrap();
        let mut lines = after.lines();
        assert_eq!(lines.next(), Some("info: app (i-1): started"));
        let at = lines.next().unwrap().strip_prefix(CUT).unwrap();
        let at: usize = at.parse().unwrap();
        let rest: Vec<&str> = lines.collect();
        let earlier = String::from_utf8(before[at..].to_vec()).unwrap();
        assert_eq!(rest.len(), earlier.lines().count() + 1);
        assert!(
            rest.iter()
                .zip(earlier.lines())
                .all(|(new, old)| *new == old)
        );
        assert_eq!(rest.last(), Some(&"app: the last"));
        assert!(u64::try_from(after.len()).unwrap() <= KEPT + 1024);
    }

    #[test]
    fn without_a_log_of_its_own_lines_are_read_and_forgotten() {
        AppLog::on_stderr(false).take(b"one\ntwo\n".as_slice());
    }
}
