//! The three vsock ports that this process answers itself.
//!
//! * **9000, heartbeat**: init sends 0xB7 and gets it back. The first one is the sign that the guest is up.
//! * **9001, life cycle**: we say [`Welcome`], init sends [`Report`]s. What it says is told on, sanitised; it
//!   decides nothing but what the operator reads. The first such connection, which init makes before anything else
//!   runs in the guest, is also how the guest is asked to stop.
//! * **9003, the application's output**: written to the enclave's log ([`AppLog`]). The end of our side of the stream says that
//!   all of it is there.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use enclos_api::PROTOCOL_VERSION;
use enclos_api::frame;
use enclos_api::guest::{
    APP_LOG_PORT, HEARTBEAT, HEARTBEAT_PORT, HostWord, LIFECYCLE_PORT, Report, Welcome,
};

use crate::log::printable;
use crate::vmm::Event;
use crate::vmm::app_log::AppLog;
use crate::vsock::Service;

/// Time for init to send its heartbeat's one byte.
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(30);

/// Reports taken in an enclave's life: init sends three.
const MAX_REPORTS: u32 = 64;

/// Longest reason kept, in characters.
const MAX_REASON: usize = 400;

/// Time for a guest to take a word; it has nothing else to read, so that the word fits its buffer.
const WORD_TIMEOUT: Duration = Duration::from_secs(1);

/// The way to init, once init is there.
#[derive(Debug, Clone, Default)]
pub(crate) struct ToInit(Arc<Mutex<Option<UnixStream>>>);

impl ToInit {
    /// The first connection stays: later ones are not init's.
    fn set(&self, stream: &UnixStream) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.is_none() {
            *slot = stream.try_clone().ok();
        }
    }

    /// Asks the guest to stop within so many seconds; false if there is nobody to ask.
    pub(crate) fn stop(&self, grace_s: u32) -> bool {
        let slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        slot.as_ref().is_some_and(|stream| {
            stream.set_write_timeout(Some(WORD_TIMEOUT)).is_ok()
                && frame::write(&mut &*stream, &HostWord::Stop { grace_s }).is_ok()
        })
    }
}

/// All services, by port.
pub(crate) fn all(
    events: &SyncSender<Event>,
    init: &ToInit,
    app_log: AppLog,
) -> Vec<(u32, Service)> {
    let heartbeat = {
        let events = events.clone();
        Arc::new(move |stream| answer_heartbeat(stream, &events)) as Service
    };
    let lifecycle = {
        let (events, init, count) = (events.clone(), init.clone(), AtomicU32::new(0));
        Arc::new(move |stream| take_reports(stream, &events, &init, &count)) as Service
    };
    let output = Arc::new(move |stream: UnixStream| app_log.take(stream)) as Service;
    vec![
        (HEARTBEAT_PORT, heartbeat),
        (LIFECYCLE_PORT, lifecycle),
        (APP_LOG_PORT, output),
    ]
}

/// Whoever sends anything else gets no answer, and counts for nothing.
fn answer_heartbeat(mut stream: UnixStream, events: &SyncSender<Event>) {
    let mut byte = [0];
    let read = stream
        .set_read_timeout(Some(HEARTBEAT_TIMEOUT))
        .and_then(|()| stream.read_exact(&mut byte));
    if read.is_ok() && byte == [HEARTBEAT] && stream.write_all(&byte).is_ok() {
        // A full queue is a guest's own flood: the main thread never waits for these threads, nor they for it.
        let _ = events.try_send(Event::Heartbeat);
    }
}

fn take_reports(
    mut stream: UnixStream,
    events: &SyncSender<Event>,
    init: &ToInit,
    count: &AtomicU32,
) {
    let welcome = Welcome {
        protocol: PROTOCOL_VERSION,
        unix_time_ns: unix_time_ns(),
    };
    if frame::write(&mut stream, &welcome).is_err() {
        return;
    }
    init.set(&stream);
    while let Ok(report) = frame::read::<Report>(&mut stream) {
        if count.fetch_add(1, Ordering::Relaxed) >= MAX_REPORTS {
            return;
        }
        if events.try_send(Event::Report(sanitised(report))).is_err() {
            return;
        }
    }
}

fn sanitised(report: Report) -> Report {
    match report {
        Report::Exited {
            status,
            signal,
            reason,
        } => Report::Exited {
            status,
            signal,
            reason: printable(&reason, MAX_REASON),
        },
        report => report,
    }
}

fn unix_time_ns() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};
    use std::thread;

    use super::*;

    fn serve(port: u32) -> (UnixStream, Receiver<Event>) {
        let (guest, events, _) = serve_init(port);
        (guest, events)
    }

    fn serve_init(port: u32) -> (UnixStream, Receiver<Event>, ToInit) {
        let init = ToInit::default();
        let (sender, receiver) = sync_channel(1000);
        let (guest, host) = UnixStream::pair().unwrap();
        guest
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let (_, service) = all(&sender, &init, AppLog::on_stderr(false))
            .into_iter()
            .find(|(known, _)| *known == port)
            .unwrap();
        thread::spawn(move || service(host));
        (guest, receiver, init)
    }

    #[test]
    fn init_is_asked_to_stop_once_it_is_there() {
        assert!(!ToInit::default().stop(5), "nobody is there yet");
        let (mut guest, _events, init) = serve_init(LIFECYCLE_PORT);
        let _: Welcome = frame::read(&mut guest).unwrap();
        frame::write(&mut guest, &Report::AppStarted).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while !init.stop(5) && std::time::Instant::now() < deadline {
            thread::yield_now();
        }
        let word: HostWord = frame::read(&mut guest).unwrap();
        assert_eq!(word, HostWord::Stop { grace_s: 5 });
    }

    #[test]
    fn the_heartbeat_is_echoed() {
        let (mut guest, events) = serve(HEARTBEAT_PORT);
        guest.write_all(&[HEARTBEAT]).unwrap();
        let mut byte = [0];
        guest.read_exact(&mut byte).unwrap();
        assert_eq!(byte, [HEARTBEAT]);
        assert!(matches!(
            events.recv_timeout(Duration::from_secs(10)),
            Ok(Event::Heartbeat)
        ));
    }

    #[test]
    fn another_byte_is_no_heartbeat() {
        let (mut guest, events) = serve(HEARTBEAT_PORT);
        guest.write_all(&[0xB6]).unwrap();
        assert_eq!(guest.read(&mut [0]).unwrap(), 0, "closed without an answer");
        assert!(events.recv_timeout(Duration::from_secs(10)).is_err());
    }

    #[test]
    fn reports_are_welcomed_sanitised_and_limited() {
        let (mut guest, events) = serve(LIFECYCLE_PORT);
        let welcome: Welcome = frame::read(&mut guest).unwrap();
        assert_eq!(welcome.protocol, PROTOCOL_VERSION);
        let reason = format!("died\n{}", "x".repeat(1000));
        let exited = Report::Exited {
            status: Some(3),
            signal: None,
            reason,
        };
        for _ in 0..=MAX_REPORTS {
            frame::write(&mut guest, &exited).unwrap();
        }
        let taken: Vec<Event> = events.iter().collect();
        assert_eq!(taken.len(), usize::try_from(MAX_REPORTS).unwrap());
        let Event::Report(Report::Exited { reason, status, .. }) = &taken[0] else {
            panic!()
        };
        assert_eq!((reason.chars().count(), *status), (MAX_REASON, Some(3)));
        assert!(reason.starts_with("died x"));
    }

    #[test]
    fn output_is_taken_to_its_end_and_that_is_acknowledged() {
        let (mut guest, _events) = serve(APP_LOG_PORT);
        guest.write_all(b"one\ntwo").unwrap();
        guest.shutdown(std::net::Shutdown::Write).unwrap();
        assert_eq!(guest.read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn garbage_ends_the_conversation() {
        let (mut guest, events) = serve(LIFECYCLE_PORT);
        let _: Welcome = frame::read(&mut guest).unwrap();
        guest.write_all(&[0xff; 64]).unwrap();
        assert!(events.iter().next().is_none());
    }
}
