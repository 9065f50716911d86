//! The 44-byte header in front of every vsock packet (virtio 1.2, section 5.10.6).
//!
//! The header is copied out of guest memory once and parsed from the copy; nothing is ever looked up in
//! guest memory a second time. All fields are little-endian.

/// Length of a packet header in bytes.
pub(crate) const HEADER_LEN: usize = 44;

/// Largest payload of one packet in bytes, either way: Linux' `VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`.
pub(crate) const MAX_PAYLOAD: usize = 64 * 1024;

/// The only socket type served: `VIRTIO_VSOCK_TYPE_STREAM`.
pub(crate) const TYPE_STREAM: u16 = 1;

/// `VIRTIO_VSOCK_SHUTDOWN_RCV`.
const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_SEND`.
const SHUTDOWN_SEND: u32 = 2;

/// What a packet is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// Opens a connection.
    Request,
    /// Accepts one.
    Response,
    /// Ends one, or refuses one, at once.
    Reset,
    /// Announces which halves the sender is done with.
    Shutdown,
    /// Carries bytes.
    Data,
    /// Tells how much the sender can take.
    CreditUpdate,
    /// Asks for that.
    CreditRequest,
}

impl Op {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Data,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The number on the wire.
    pub(crate) const fn code(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }

    /// The operation with this number, if there is one.
    pub(crate) fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|op| op.code() == code)
    }
}

/// The two halves of a connection, as seen by whoever speaks of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Halves {
    /// Sending.
    pub(crate) send: bool,
    /// Receiving.
    pub(crate) receive: bool,
}

impl Halves {
    /// Both halves.
    pub(crate) const BOTH: Self = Self {
        send: true,
        receive: true,
    };

    /// From the flags of a shutdown packet; unknown bits mean nothing.
    pub(crate) const fn from_flags(flags: u32) -> Self {
        Self {
            send: flags & SHUTDOWN_SEND != 0,
            receive: flags & SHUTDOWN_RECEIVE != 0,
        }
    }

    /// As the flags of a shutdown packet.
    pub(crate) const fn flags(self) -> u32 {
        let send = if self.send { SHUTDOWN_SEND } else { 0 };
        let receive = if self.receive { SHUTDOWN_RECEIVE } else { 0 };
        send | receive
    }

    /// What is set in either.
    pub(crate) const fn or(self, other: Self) -> Self {
        Self {
            send: self.send || other.send,
            receive: self.receive || other.receive,
        }
    }

    /// Whether both are set.
    pub(crate) const fn both(self) -> bool {
        self.send && self.receive
    }
}

/// A packet header. `op` and `kind` are as received: they may be nonsense.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) src_cid: u64,
    pub(crate) dst_cid: u64,
    pub(crate) src_port: u32,
    pub(crate) dst_port: u32,
    pub(crate) len: u32,
    pub(crate) kind: u16,
    pub(crate) op: u16,
    pub(crate) flags: u32,
    pub(crate) buf_alloc: u32,
    pub(crate) fwd_cnt: u32,
}

impl Header {
    /// Reads a header. Every byte pattern is one.
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.take()),
            dst_cid: u64::from_le_bytes(fields.take()),
            src_port: u32::from_le_bytes(fields.take()),
            dst_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            op: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    /// Writes the header.
    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

/// The part of a header that has not been read yet.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    /// The next `N` bytes. A header is exactly as long as its fields, so there always are that many.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (field, rest) = self.0.split_first_chunk::<N>().unwrap_or((&[0; N], &[]));
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use virtio_queue::{
        Queue, QueueT,
        desc::{RawDescriptor, split::Descriptor},
        mock::MockSplitQueue,
    };
    use virtio_vsock::packet::VsockPacket;
    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    /// Reads `bytes` as rust-vmm's packet parser does.
    fn parse_elsewhere(bytes: &[u8; HEADER_LEN]) -> Header {
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 0x10_0000)]).unwrap();
        let ring = MockSplitQueue::new(&memory, 16);
        let mut queue: Queue = ring.create_queue().unwrap();
        memory.write_slice(bytes, GuestAddress(0x5_0000)).unwrap();
        let descriptor = Descriptor::new(0x5_0000, 44, 0, 0);
        ring.build_desc_chain(&[RawDescriptor::from(descriptor)])
            .unwrap();
        let mut chain = queue.pop_descriptor_chain(&memory).unwrap();
        let packet = VsockPacket::from_tx_virtq_chain(&memory, &mut chain, u32::MAX).unwrap();
        Header {
            src_cid: packet.src_cid(),
            dst_cid: packet.dst_cid(),
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            len: packet.len(),
            kind: packet.type_(),
            op: packet.op(),
            flags: packet.flags(),
            buf_alloc: packet.buf_alloc(),
            fwd_cnt: packet.fwd_cnt(),
        }
    }

    #[test]
    fn layout_is_the_one_of_an_independent_implementation() {
        let mut bytes: [u8; HEADER_LEN] = std::array::from_fn(|i| u8::try_from(i + 1).unwrap());
        // The other parser wants the payload where the header says there is one.
        bytes[24..28].fill(0);
        assert_eq!(Header::parse(&bytes), parse_elsewhere(&bytes));
    }

    #[test]
    fn operations_have_the_numbers_of_the_standard() {
        let codes = Op::ALL.map(Op::code);
        assert_eq!(codes, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(Op::from_code(0), None);
        assert_eq!(Op::from_code(8), None);
    }

    #[test]
    fn shutdown_flags_keep_their_meaning() {
        assert_eq!(
            Halves::from_flags(1),
            Halves {
                send: false,
                receive: true
            }
        );
        assert_eq!(
            Halves::from_flags(2),
            Halves {
                send: true,
                receive: false
            }
        );
        assert_eq!(Halves::from_flags(0xffff_fffc), Halves::default());
        assert_eq!(Halves::BOTH.flags(), 3);
    }

    proptest! {
        #[test]
        fn every_byte_pattern_survives_parsing(bytes in proptest::array::uniform32(any::<u8>()), tail in proptest::array::uniform12(any::<u8>())) {
            let mut header = [0; HEADER_LEN];
            header[..32].copy_from_slice(&bytes);
            header[32..].copy_from_slice(&tail);
            prop_assert_eq!(Header::parse(&header).to_bytes(), header);
        }
    }
}
