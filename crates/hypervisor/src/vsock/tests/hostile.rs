//! What hostile guests must not achieve: after each attack the device still serves honest streams, unless the
//! guest has broken a queue, which ends its own service and nothing else.

use std::{
    io::Read,
    os::unix::net::{UnixListener, UnixStream},
};

use proptest::prelude::*;

use super::driver::{Driver, GUEST_CID, MEMORY, Stream, pattern, read_exact};
use crate::{
    vhost_user::test_ring::{Descriptor, INDIRECT, NEXT, WRITE},
    vsock::{
        muxer::MAX_CONNECTIONS,
        packet::{HEADER_LEN, Header, Op},
    },
};

/// A fresh stream can be opened and carries a byte to the host, whatever else goes on.
fn assert_alive(driver: &mut Driver, listener: &UnixListener) {
    const PORT: u32 = 60_000;
    listener.set_nonblocking(true).unwrap();
    let mut streams = Vec::new();
    let mut accept_all = move || {
        streams.extend(std::iter::from_fn(|| listener.accept().ok()));
        streams.pop()
    };
    driver.pump();
    accept_all();
    driver.inbox.clear();
    let mut guest = Stream::new(PORT, 8000);
    driver.send(&guest.header(Op::Request), &[]);
    driver.pump_until(|driver| {
        let response = |header: &Header| (header.dst_port, header.op) == (PORT, 2);
        driver.inbox.iter().any(|(header, _)| response(header))
    });
    let (mut host, _) = accept_all().unwrap();
    let byte = guest.data(b"!");
    driver.send(&byte, b"!");
    assert_eq!(read_exact(driver, &mut host, 1), b"!");
    driver.send(&guest.header(Op::Reset), &[]);
    driver.pump();
}

#[test]
fn more_data_than_granted_resets_the_stream() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let mut guest = driver.open(1024, 8000);
    let (_host, _) = listener.accept().unwrap();
    // Nobody reads, so the device acknowledges no more than a socket holds.
    let payload = pattern(0, 64 * 1024);
    for _ in 0..100 {
        let header = guest.data(&payload);
        driver.send(&header, &payload);
        if driver
            .inbox
            .iter()
            .any(|(header, _)| header.op == Op::Reset.code())
        {
            return assert_alive(&mut driver, &listener);
        }
    }
    panic!("6 MiB were taken from a guest that was granted 256 KiB");
}

#[test]
fn acknowledging_bytes_never_sent_resets_the_stream() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let guest = driver.open(1024, 8000);
    driver.send(
        &Header {
            fwd_cnt: 1,
            ..guest.header(Op::CreditUpdate)
        },
        &[],
    );
    driver.expect(Op::Reset);
    assert_alive(&mut driver, &listener);
}

#[test]
fn an_old_acknowledgement_is_ignored() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let guest = driver.open(1024, 8000);
    driver.send(
        &Header {
            fwd_cnt: u32::MAX,
            ..guest.header(Op::CreditUpdate)
        },
        &[],
    );
    driver.expect_nothing();
    assert_alive(&mut driver, &listener);
}

#[test]
fn packets_out_of_place_reset_their_stream() {
    for op in [Op::Request, Op::Response] {
        let mut driver = Driver::new();
        let listener = driver.listen(8000);
        let guest = driver.open(1024, 8000);
        driver.send(&guest.header(op), &[]);
        driver.expect(Op::Reset);
        assert_alive(&mut driver, &listener);
    }
}

#[test]
fn data_after_the_end_of_data_resets_the_stream() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let mut guest = driver.open(1024, 8000);
    driver.send(&guest.shutdown(2), &[]);
    let more = guest.data(b"more");
    driver.send(&more, b"more");
    driver.expect(Op::Reset);
    assert_alive(&mut driver, &listener);
}

#[test]
fn unknown_streams_types_operations_and_hosts_are_reset_but_resets_are_not() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let stream = Stream::new(1024, 8000);
    let strange = [
        stream.header(Op::Data),
        stream.header(Op::Shutdown),
        stream.header(Op::CreditUpdate),
        stream.header(Op::CreditRequest),
        Header {
            kind: 2,
            ..stream.header(Op::Request)
        },
        Header {
            op: 99,
            ..stream.header(Op::Request)
        },
        Header {
            dst_cid: 77,
            ..stream.header(Op::Request)
        },
        Header {
            dst_cid: u64::from(GUEST_CID),
            ..stream.header(Op::Request)
        },
    ];
    for header in strange {
        driver.send(&header, &[]);
        let reset = driver.expect(Op::Reset);
        assert_eq!(
            (reset.src_cid, reset.src_port),
            (header.dst_cid, header.dst_port)
        );
        assert_eq!(reset.kind, header.kind);
        driver.send(
            &Header {
                op: Op::Reset.code(),
                ..header
            },
            &[],
        );
        driver.expect_nothing();
    }
    driver.send(
        &Header {
            src_cid: 3,
            ..stream.header(Op::Request)
        },
        &[],
    );
    driver.expect_nothing();
    assert_alive(&mut driver, &listener);
}

#[test]
fn a_length_beyond_the_buffers_resets_the_stream() {
    for len in [5, 65_537, u32::MAX] {
        let mut driver = Driver::new();
        let listener = driver.listen(8000);
        let guest = driver.open(1024, 8000);
        driver.send(
            &Header {
                len,
                ..guest.header(Op::Data)
            },
            b"four",
        );
        driver.expect(Op::Reset);
        assert_alive(&mut driver, &listener);
    }
}

#[test]
fn a_length_on_packets_without_payload_means_nothing() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let guest = driver.open(1024, 8000);
    driver.send(
        &Header {
            len: u32::MAX,
            ..guest.header(Op::CreditUpdate)
        },
        &[],
    );
    driver.expect_nothing();
    assert_alive(&mut driver, &listener);
}

#[test]
fn a_flood_of_requests_is_bounded() {
    crate::daemon::serve::raise_descriptor_limit();
    let mut driver = Driver::new();
    let _listener = driver.listen(8000);
    let accepted: std::thread::JoinHandle<()> = {
        let listener = _listener.try_clone().unwrap();
        std::thread::spawn(move || {
            let mut streams = Vec::new();
            while streams.len() < MAX_CONNECTIONS {
                streams.push(listener.accept().unwrap());
            }
        })
    };
    let mut refused = 0;
    for port in 0..u32::try_from(MAX_CONNECTIONS).unwrap() + 100 {
        driver.send(&Stream::new(port, 8000).header(Op::Request), &[]);
        refused += driver
            .inbox
            .iter()
            .filter(|(h, _)| h.op == Op::Reset.code())
            .count();
        driver.inbox.clear();
    }
    assert_eq!(refused, 100);
    driver.pump_until(|_| accepted.is_finished());
    accepted.join().unwrap();
}

#[test]
fn a_flood_of_nonsense_without_receive_buffers_is_bounded() {
    let mut driver = Driver::without_buffers(Vec::new());
    let listener = driver.listen(8000);
    for port in 0..5000 {
        driver.send_cut(&Stream::new(port, 1).header(Op::Data), &[], &[]);
        driver.step();
    }
    driver.post_all();
    driver.pump();
    let resets = driver.inbox.len();
    assert!((1..=256).contains(&resets), "{resets} resets");
    assert_alive(&mut driver, &listener);
}

#[test]
fn chains_that_lead_nowhere_are_given_back() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let memory = u64::try_from(MEMORY).unwrap();
    let here = driver.transmit_memory();
    let nowhere = [
        vec![Descriptor::readable(memory, 44)],
        vec![Descriptor::readable(memory - 20, 44)],
        vec![Descriptor::readable(u64::MAX - 10, 44)],
        vec![Descriptor::readable(here, 0)],
        vec![Descriptor::readable(here, 43)],
        vec![Descriptor::readable(here, u32::MAX)],
        vec![
            Descriptor::readable(here, u32::MAX),
            Descriptor::readable(here, u32::MAX),
        ],
        vec![Descriptor {
            flags: WRITE,
            ..Descriptor::readable(here, 4096)
        }],
        vec![
            Descriptor::readable(here, 20),
            Descriptor {
                flags: WRITE,
                ..Descriptor::readable(here, 4096)
            },
        ],
    ];
    let before = driver.tx.returned();
    let count = u16::try_from(nowhere.len()).unwrap();
    for chain in nowhere {
        driver.transmit(&chain);
        driver.step();
    }
    assert_eq!(driver.tx.returned().wrapping_sub(before), count);
    assert_alive(&mut driver, &listener);
}

#[test]
fn descriptor_loops_and_indirect_tables_end() {
    let mut driver = Driver::new();
    let listener = driver.listen(8000);
    let here = driver.transmit_memory();
    // A descriptor whose successor it is itself.
    let slot = driver.transmit_slot();
    driver.transmit(&[Descriptor {
        flags: NEXT,
        next: slot,
        ..Descriptor::readable(here, 1)
    }]);
    driver.step();
    // An indirect table that names itself, and one of the greatest size.
    let here = driver.transmit_memory();
    driver.tx.write_descriptor(
        here,
        Descriptor {
            flags: INDIRECT,
            ..Descriptor::readable(here, 16)
        },
    );
    driver.transmit(&[Descriptor {
        flags: INDIRECT,
        ..Descriptor::readable(here, 16)
    }]);
    driver.step();
    let here = driver.transmit_memory();
    let table = 0x10_0000;
    for i in 0..4096 {
        let next = (i + 1) % 4096;
        driver.tx.write_descriptor(
            table + u64::from(i) * 16,
            Descriptor {
                flags: NEXT,
                next,
                ..Descriptor::readable(here, u32::MAX / 8192)
            },
        );
    }
    driver.transmit(&[Descriptor {
        flags: INDIRECT,
        ..Descriptor::readable(table, 65535 * 16)
    }]);
    driver.step();
    assert_eq!(
        driver.tx.returned(),
        driver.tx.published,
        "a chain was kept"
    );
    assert_alive(&mut driver, &listener);
}

#[test]
fn a_queue_whose_index_lies_is_ignored_and_host_clients_still_get_an_answer() {
    let mut driver = Driver::new();
    let index = driver.tx.published.wrapping_add(257);
    driver.tx.forge_index(index);
    let taken = driver.tx.returned();
    for _ in 0..3 {
        driver.step();
    }
    assert_eq!(driver.tx.returned(), taken);
    let mut client = driver.client(b"CONNECT 5\n");
    driver.step();
    let mut answer = Vec::new();
    // Turned away: the guest cannot answer.
    if client.read_to_end(&mut answer).is_ok() {
        assert_eq!(answer, b"");
    }
}

#[test]
fn a_head_outside_the_table_breaks_the_queue_and_nothing_else() {
    let mut driver = Driver::new();
    let taken = driver.tx.returned();
    driver.tx.offer_head(60_000);
    driver.step();
    driver.step();
    assert_eq!(driver.tx.returned(), taken);
}

#[test]
fn host_clients_that_say_nothing_are_bounded_and_keep_nobody_out() {
    let mut driver = Driver::new();
    let silent: Vec<_> = (0..100).map(|_| driver.client(b"")).collect();
    driver.pump();
    let hung_up_on = |mut client: &UnixStream| {
        client.set_nonblocking(true).unwrap();
        matches!(client.read(&mut [0; 1]), Ok(0))
    };
    let (oldest, newest) = silent.split_at(36);
    assert!(oldest.iter().all(hung_up_on));
    assert!(!newest.iter().any(hung_up_on));
    let _client = driver.client(b"CONNECT 5000\n");
    driver.expect(Op::Request);
}

/// A header of mostly believable fields, so that it gets past the first checks.
fn header() -> impl Strategy<Value = Header> {
    let cid = prop_oneof![8 => Just(u64::from(GUEST_CID)), 1 => any::<u64>()];
    let host = prop_oneof![8 => 2_u64..4, 1 => any::<u64>()];
    let port = prop_oneof![8 => 1000_u32..1004, 1 => any::<u32>()];
    let to = prop_oneof![8 => 8000_u32..8002, 1 => any::<u32>()];
    let len = prop_oneof![8 => 0_u32..2000, 1 => any::<u32>()];
    let kind = prop_oneof![12 => Just(1_u16), 1 => any::<u16>()];
    let op = prop_oneof![12 => 1_u16..8, 1 => any::<u16>()];
    let credit = prop_oneof![4 => Just(0_u32), 2 => 0_u32..100_000, 1 => any::<u32>()];
    let ends = (cid, host, port, to);
    (ends, len, kind, op, 0_u32..5, any::<u32>(), credit).prop_map(
        |((src_cid, dst_cid, src_port, dst_port), len, kind, op, flags, buf_alloc, fwd_cnt)| {
            Header {
                src_cid,
                dst_cid,
                src_port,
                dst_port,
                len,
                kind,
                op,
                flags,
                buf_alloc,
                fwd_cnt,
            }
        },
    )
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let end = u64::try_from(MEMORY).unwrap();
    let addr = prop_oneof![4 => 0..end, 1 => end - 100..end + 100, 1 => any::<u64>()];
    let len = prop_oneof![4 => 0_u32..5000, 1 => any::<u32>()];
    (addr, len, 0_u16..8, 0_u16..300).prop_map(|(addr, len, flags, next)| Descriptor {
        addr,
        len,
        flags,
        next,
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_packets_leave_the_device_alive(packets in prop::collection::vec((header(), 0_usize..3000), 1..200)) {
        let mut driver = Driver::new();
        let listener = driver.listen(8000);
        listener.set_nonblocking(true).unwrap();
        for (header, payload) in packets {
            driver.send(&header, &pattern(1, payload));
            driver.inbox.clear();
        }
        assert_alive(&mut driver, &listener);
    }

    #[test]
    fn any_descriptors_leave_the_device_alive(
        chains in prop::collection::vec((prop::collection::vec(descriptor(), 1..8), any::<[u8; 32]>()), 1..100),
    ) {
        let mut driver = Driver::new();
        let listener = driver.listen(8000);
        for (chain, noise) in chains {
            driver.tx.write(driver.transmit_memory(), &noise);
            driver.transmit(&chain);
            driver.step();
            // Writes of the device may have gone anywhere in guest memory only if a descriptor allowed it:
            // none of these are in the receive queue.
            driver.post_all();
        }
        assert_eq!(driver.tx.returned(), driver.tx.published);
        driver.inbox.clear();
        assert_alive(&mut driver, &listener);
    }

    #[test]
    fn headers_cut_anywhere_are_read_whole(cut in 1_usize..HEADER_LEN, again in 1_usize..HEADER_LEN) {
        let mut driver = Driver::new();
        driver.send_cut(&Stream::new(1024, 1).header(Op::Request), &[], &[cut, again]);
        let reset = driver.expect(Op::Reset);
        prop_assert_eq!(reset.dst_port, 1024);
    }
}
