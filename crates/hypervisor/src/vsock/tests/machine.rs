//! The connection machine by itself: its timers, and any order of events against a model.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::driver::Stream;
use crate::vsock::{
    connection::{CLOSE_GRACE, CONNECT_TIMEOUT, Connection, Control, LINGER, Verdict, Violation},
    packet::{Halves, Header, Op},
};

const GRANT: u32 = 10_000;
const SEND: Halves = Halves {
    send: true,
    receive: false,
};
const RECEIVE: Halves = Halves {
    send: false,
    receive: true,
};
const MOMENT: Duration = Duration::from_nanos(1);

fn header(op: Op) -> Header {
    Stream::new(1, 2).header(op)
}

fn open(now: Instant) -> Connection {
    let mut connection = Connection::from_guest(&header(Op::Request), GRANT, now);
    connection.dialled();
    assert_eq!(connection.next_control(now), Some(Control::Response));
    assert_eq!(connection.deadline(), None);
    connection
}

fn data(len: u32) -> Header {
    Header {
        len,
        ..header(Op::Data)
    }
}

fn shutdown(halves: Halves) -> Header {
    Header {
        flags: halves.flags(),
        ..header(Op::Shutdown)
    }
}

/// All packets that are due.
fn controls(connection: &mut Connection, now: Instant) -> Vec<Control> {
    let due = std::iter::from_fn(|| connection.next_control(now)).collect();
    assert!(!connection.has_control());
    due
}

#[test]
fn a_host_that_is_not_reached_in_time_is_refused() {
    let now = Instant::now();
    let mut connection = Connection::from_guest(&header(Op::Request), GRANT, now);
    assert_eq!(connection.deadline(), Some(now + CONNECT_TIMEOUT));
    assert!(!connection.expired(now + CONNECT_TIMEOUT - MOMENT));
    assert!(connection.expired(now + CONNECT_TIMEOUT));
    assert_eq!(controls(&mut connection, now), [Control::Reset]);
    assert!(connection.is_over());
}

#[test]
fn a_guest_that_does_not_answer_in_time_is_given_up() {
    let now = Instant::now();
    let mut connection = Connection::from_host(GRANT, now);
    assert_eq!(controls(&mut connection, now), [Control::Request]);
    assert!(!connection.expired(now + CONNECT_TIMEOUT - MOMENT));
    assert!(connection.expired(now + CONNECT_TIMEOUT));
    assert_eq!(controls(&mut connection, now), [Control::Reset]);
}

#[test]
fn a_client_that_leaves_before_the_guest_was_asked_leaves_no_trace() {
    let now = Instant::now();
    let mut connection = Connection::from_host(GRANT, now);
    connection.host_closed(RECEIVE, now);
    assert_eq!(controls(&mut connection, now), []);
    assert!(connection.is_over());
}

#[test]
fn a_client_that_leaves_before_the_guest_answers_makes_it_forget() {
    let now = Instant::now();
    let mut connection = Connection::from_host(GRANT, now);
    assert_eq!(controls(&mut connection, now), [Control::Request]);
    connection.host_closed(Halves::BOTH, now);
    assert_eq!(controls(&mut connection, now), [Control::Reset]);
    assert!(connection.is_over());
}

#[test]
fn a_guest_that_ignores_the_end_is_reset_after_the_grace() {
    let now = Instant::now();
    let mut connection = open(now);
    connection.host_closed(Halves::BOTH, now);
    assert_eq!(
        controls(&mut connection, now),
        [Control::Shutdown(Halves::BOTH)]
    );
    assert!(!connection.expired(now + CLOSE_GRACE - MOMENT));
    assert!(connection.expired(now + CLOSE_GRACE));
    assert_eq!(controls(&mut connection, now), [Control::Reset]);
    assert!(connection.is_over());
}

#[test]
fn a_host_that_never_reads_loses_the_rest_after_the_linger() {
    let now = Instant::now();
    let mut connection = open(now);
    assert_eq!(
        connection.packet(&data(500), Op::Data, now),
        Ok(Verdict::Deliver)
    );
    connection
        .packet(&shutdown(Halves::BOTH), Op::Shutdown, now)
        .unwrap();
    assert_eq!(controls(&mut connection, now), []);
    assert!(!connection.expired(now + LINGER - MOMENT));
    assert!(connection.is_alive());
    assert!(connection.expired(now + LINGER));
    assert_eq!(controls(&mut connection, now), [Control::Reset]);
}

#[test]
fn a_reset_delivers_what_came_before_it_and_is_not_answered() {
    let now = Instant::now();
    let mut connection = open(now);
    connection.packet(&data(500), Op::Data, now).unwrap();
    connection
        .packet(&header(Op::Reset), Op::Reset, now)
        .unwrap();
    assert!(connection.is_alive());
    assert_eq!(controls(&mut connection, now), []);
    connection.delivered(500, now);
    assert!(connection.is_over());
    assert_eq!(controls(&mut connection, now), []);
}

#[test]
fn halves_end_independently() {
    let now = Instant::now();
    let mut connection = open(now);
    connection.packet(&data(500), Op::Data, now).unwrap();
    connection
        .packet(&shutdown(SEND), Op::Shutdown, now)
        .unwrap();
    assert!(
        !connection.take_write_close(),
        "500 bytes are still on their way"
    );
    connection.delivered(499, now);
    assert!(!connection.take_write_close());
    connection.delivered(1, now);
    assert!(connection.take_write_close());
    assert!(!connection.take_write_close(), "once is enough");
    assert!(connection.may_send() > 0, "the other direction goes on");
    connection.host_closed(SEND, now);
    assert_eq!(
        controls(&mut connection, now),
        [Control::Shutdown(SEND), Control::Reset]
    );
}

#[test]
fn a_guest_that_stops_reading_closes_the_hosts_way_in() {
    let now = Instant::now();
    let mut connection = open(now);
    connection
        .packet(&shutdown(RECEIVE), Op::Shutdown, now)
        .unwrap();
    assert!(connection.take_read_close());
    assert_eq!(connection.may_send(), 0);
    assert_eq!(
        connection.packet(&data(1), Op::Data, now),
        Ok(Verdict::Deliver)
    );
}

#[test]
fn a_vanished_host_swallows_what_the_guest_still_sends() {
    let now = Instant::now();
    let mut connection = open(now);
    connection.packet(&data(GRANT), Op::Data, now).unwrap();
    connection.host_closed(RECEIVE, now);
    for _ in 0..100 {
        assert_eq!(
            connection.packet(&data(GRANT), Op::Data, now),
            Ok(Verdict::Discard)
        );
    }
}

#[test]
fn one_byte_beyond_the_grant_is_one_too_many() {
    let now = Instant::now();
    let mut connection = open(now);
    connection.packet(&data(GRANT), Op::Data, now).unwrap();
    assert_eq!(
        connection.packet(&data(0), Op::Data, now),
        Ok(Verdict::Deliver)
    );
    assert_eq!(
        connection.packet(&data(1), Op::Data, now),
        Err(Violation::CreditExceeded)
    );
    assert_eq!(controls(&mut connection, now), [Control::Reset]);
    assert!(connection.is_over());
}

#[test]
fn credit_is_counted_across_the_wrap_of_its_counters() {
    let now = Instant::now();
    let mut connection = open(now);
    let step = 1 << 30;
    let wide = Header {
        buf_alloc: u32::MAX,
        ..header(Op::CreditUpdate)
    };
    let mut consumed = 0_u32;
    for _ in 0..9 {
        let update = Header {
            fwd_cnt: consumed,
            ..wide
        };
        connection.packet(&update, Op::CreditUpdate, now).unwrap();
        assert_eq!(connection.may_send(), u32::MAX);
        connection.sending(step);
        assert_eq!(connection.may_send(), u32::MAX - step);
        consumed = consumed.wrapping_add(step);
    }
}

#[test]
fn credit_is_asked_for_once_and_again_after_some_came() {
    let now = Instant::now();
    let mut connection = open(now);
    let nothing = Header {
        buf_alloc: 0,
        ..header(Op::CreditUpdate)
    };
    connection.packet(&nothing, Op::CreditUpdate, now).unwrap();
    connection.starved();
    connection.starved();
    assert_eq!(controls(&mut connection, now), [Control::CreditRequest]);
    connection.starved();
    assert_eq!(controls(&mut connection, now), []);
    connection
        .packet(&header(Op::CreditUpdate), Op::CreditUpdate, now)
        .unwrap();
    connection.packet(&nothing, Op::CreditUpdate, now).unwrap();
    connection.starved();
    assert_eq!(controls(&mut connection, now), [Control::CreditRequest]);
}

/// Something that happens to an open stream with an honest guest.
#[derive(Debug, Clone, Copy)]
enum Event {
    GuestSends(u32),
    GuestShuts(u32),
    GuestConsumes(u32),
    GuestAsksForCredit,
    HostTakes(u32),
    HostSends(u32),
    HostEnds,
    HostStopsReading,
    PacketsGoOut,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1..GRANT).prop_map(Event::GuestSends),
        1 => (1_u32..4).prop_map(Event::GuestShuts),
        4 => (0_u32..300_000).prop_map(Event::GuestConsumes),
        1 => Just(Event::GuestAsksForCredit),
        6 => (1..2 * GRANT).prop_map(Event::HostTakes),
        6 => (1_u32..300_000).prop_map(Event::HostSends),
        1 => Just(Event::HostEnds),
        1 => Just(Event::HostStopsReading),
        6 => Just(Event::PacketsGoOut),
    ]
}

/// What both sides know to be true, kept with plain 64-bit counts.
struct Model {
    connection: Connection,
    now: Instant,
    guest: Stream,
    guest_done: Halves,
    host_done: Halves,
    guest_sent: u64,
    host_got: u64,
    host_sent: u64,
    reset: bool,
    told: Halves,
}

impl Model {
    fn new() -> Self {
        let now = Instant::now();
        let guest = Stream {
            granted: GRANT,
            ..Stream::new(1, 2)
        };
        Self {
            connection: open(now),
            now,
            guest,
            guest_done: Halves::default(),
            host_done: Halves::default(),
            guest_sent: 0,
            host_got: 0,
            host_sent: 0,
            reset: false,
            told: Halves::default(),
        }
    }

    fn waiting(&self) -> u64 {
        self.guest_sent - self.host_got
    }

    fn show(&mut self, header: &Header, op: Op) -> Verdict {
        self.connection
            .packet(header, op, self.now)
            .expect("an honest guest breaks no rule")
    }

    fn happen(&mut self, event: Event) {
        if !self.connection.is_alive() {
            return;
        }
        match event {
            Event::GuestSends(len) => self.guest_sends(len),
            Event::GuestShuts(flags) => {
                let halves = Halves::from_flags(flags);
                self.guest_done = self.guest_done.or(halves);
                let header = Header {
                    flags,
                    ..self.guest.header(Op::Shutdown)
                };
                self.show(&header, Op::Shutdown);
            }
            Event::GuestConsumes(len) => {
                let unread = self.guest.received.wrapping_sub(self.guest.consumed);
                self.guest.consumed = self.guest.consumed.wrapping_add(len.min(unread));
                let header = self.guest.header(Op::CreditUpdate);
                self.show(&header, Op::CreditUpdate);
            }
            Event::GuestAsksForCredit => {
                let header = self.guest.header(Op::CreditRequest);
                self.show(&header, Op::CreditRequest);
            }
            Event::HostTakes(len) => {
                let len = u64::from(len).min(self.waiting());
                self.host_got += len;
                self.connection
                    .delivered(u32::try_from(len).unwrap(), self.now);
            }
            Event::HostSends(len) => self.host_sends(len),
            Event::HostEnds => {
                self.host_done.send = true;
                self.connection.host_closed(SEND, self.now);
            }
            Event::HostStopsReading => {
                self.host_done.receive = true;
                self.host_got = self.guest_sent;
                self.connection.host_closed(RECEIVE, self.now);
            }
            Event::PacketsGoOut => self.packets_go_out(),
        }
    }

    fn guest_sends(&mut self, len: u32) {
        let len = len.min(u32::try_from(self.guest.room()).unwrap());
        if self.guest_done.send {
            return;
        }
        self.guest.sent = self.guest.sent.wrapping_add(len);
        self.guest_sent += u64::from(len);
        let header = Header {
            len,
            ..self.guest.header(Op::Data)
        };
        match self.show(&header, Op::Data) {
            Verdict::Discard => {
                assert!(
                    self.host_done.receive,
                    "bytes of a stream that works are thrown away"
                );
                self.host_got = self.guest_sent;
            }
            verdict => assert_eq!(verdict, Verdict::Deliver),
        }
    }

    fn host_sends(&mut self, len: u32) {
        let len = len.min(self.connection.may_send());
        if len == 0 {
            self.connection.starved();
            return;
        }
        assert!(!self.guest_done.receive && !self.host_done.send);
        self.connection.sending(len);
        self.host_sent += u64::from(len);
        self.guest.received = self.guest.received.wrapping_add(len);
        self.stamp();
        let unread = self.guest.received.wrapping_sub(self.guest.consumed);
        assert!(
            unread <= super::driver::GUEST_GRANT,
            "the guest's grant is exceeded"
        );
    }

    /// The guest sees the credit fields of a packet.
    fn stamp(&mut self) {
        let (granted, delivered) = self.connection.credit();
        assert_eq!(granted, GRANT);
        self.guest.acknowledged = delivered;
        assert!(
            self.guest.sent.wrapping_sub(delivered) <= GRANT,
            "forged acknowledgement"
        );
    }

    fn packets_go_out(&mut self) {
        loop {
            assert!(
                !self.reset || !self.connection.has_control(),
                "something follows a reset"
            );
            let Some(control) = self.connection.next_control(self.now) else {
                break;
            };
            self.stamp();
            match control {
                Control::Reset => self.reset = true,
                Control::Shutdown(halves) => {
                    assert_ne!(halves, self.told, "nothing new is announced");
                    assert_eq!(halves, self.host_done);
                    self.told = halves;
                }
                Control::CreditUpdate | Control::CreditRequest => {}
                Control::Request | Control::Response => panic!("{control:?} on an open stream"),
            }
        }
        assert!(!self.connection.has_control());
    }

    /// What must hold once all packets have gone out.
    fn check(&self) {
        let to_host_over = self.guest_done.send && self.waiting() == 0;
        let to_guest_over = self.guest_done.receive || self.told.send;
        assert_eq!(
            self.reset,
            to_host_over && to_guest_over,
            "a reset ends streams, and only over ones"
        );
        assert_eq!(self.connection.is_over(), self.reset);
        if !self.reset && self.waiting() == 0 {
            assert!(
                self.guest.room() > usize::try_from(GRANT / 2).unwrap(),
                "the guest waits for credit nobody announces"
            );
        }
        let may_linger = self.guest_done.both() || self.told.both();
        assert!(
            self.connection.deadline().is_none() || may_linger,
            "a timer runs on a healthy stream"
        );
    }
}

/// An event with fields that may all lie.
fn lie() -> impl Strategy<Value = Header> {
    let len = prop_oneof![0..2 * GRANT, any::<u32>()];
    (1_u16..8, len, any::<u32>(), any::<u32>(), any::<u32>()).prop_map(
        |(op, len, flags, buf_alloc, fwd_cnt)| Header {
            op,
            len,
            flags,
            buf_alloc,
            fwd_cnt,
            ..header(Op::Data)
        },
    )
}

proptest! {
    #[test]
    fn any_order_of_events_keeps_the_promises(events in prop::collection::vec(event(), 0..80)) {
        let mut model = Model::new();
        for event in events {
            model.happen(event);
        }
        model.packets_go_out();
        model.check();
    }

    #[test]
    fn lies_end_the_stream_with_one_reset_or_mean_nothing(lies in prop::collection::vec(lie(), 1..50)) {
        let now = Instant::now();
        let mut connection = open(now);
        let mut resets = 0;
        let mut ended = false;
        for header in lies {
            let op = Op::from_code(header.op).unwrap();
            let broken = connection.packet(&header, op, now).is_err();
            prop_assert!(!(broken && ended), "a stream that has ended cannot be broken again");
            ended |= !connection.is_alive();
            prop_assert!(!broken || ended);
            while let Some(control) = connection.next_control(now) {
                resets += u32::from(control == Control::Reset);
            }
        }
        prop_assert!(resets <= 1);
        prop_assert_eq!(connection.is_over(), ended);
    }
}
