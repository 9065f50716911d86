//! Which driver is retargeted, and which is not touched.

use enclos_eif::image::{ModuleError, retarget_nsm};

use crate::common::module;

#[test]
fn only_one_device_table_is_retargeted() {
    for ids in [&[][..], &[4], &[33, 33]] {
        let error = retarget_nsm(&module("nsm", "", ids)).unwrap_err();
        let expected = ids.iter().filter(|id| **id == 33).count();
        assert!(matches!(error, ModuleError::DeviceTable { found } if found == expected));
    }
    assert!(matches!(
        retarget_nsm(b"junk"),
        Err(ModuleError::Elf { .. })
    ));
    let whole = module("nsm", "", &[33]);
    for len in 0..whole.len() {
        assert!(retarget_nsm(&whole[..len]).is_err(), "{len}");
    }
}
