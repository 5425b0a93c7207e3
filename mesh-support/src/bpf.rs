//! The `bpf(2)` system call, for the commands that aya does not offer. The only file that makes it.
//!
//! Numbers and structures are those of the kernel's `linux/bpf.h`.

use std::{
    ffi::CString,
    io,
    mem::MaybeUninit,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

const MAP_CREATE: libc::c_long = 0;
const MAP_DELETE: libc::c_long = 3;
const MAP_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const LINK_CREATE: libc::c_long = 28;

const MAP_TYPE_HASH: u32 = 1;
const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_PERCPU_ARRAY: u32 = 6;
const MAP_TYPE_LRU_HASH: u32 = 9;
const MAP_TYPE_LPM_TRIE: u32 = 11;

/// One instruction, `struct bpf_insn` of a little-endian machine.
#[derive(Clone, Copy, Debug)]
#[repr(transparent)]
pub struct Instruction(u64);

impl Instruction {
    /// `exit`: returns r0.
    pub const EXIT: Self = Self::new(0x95, 0, 0);

    /// Sets a register to a number.
    #[must_use]
    pub const fn set(register: u8, value: u32) -> Self {
        Self::new(0xb7, register, value)
    }

    /// Calls a helper function.
    #[must_use]
    pub const fn call(helper: u32) -> Self {
        Self::new(0x85, 0, helper)
    }

    const fn new(code: u8, destination: u8, immediate: u32) -> Self {
        Self(code as u64 | ((destination & 0xf) as u64) << 8 | (immediate as u64) << 32)
    }
}

/// Loads a program of a type, to be attached to a hook (`attach_type`, 0 where the type has one hook only).
///
/// # Errors
/// The kernel's refusal: `EPERM` without the capability, `EINVAL` for what it does not know.
pub fn load_program(
    program_type: u32,
    attach_type: u32,
    instructions: &[Instruction],
) -> io::Result<OwnedFd> {
    let mut attributes = ProgramLoad {
        program_type,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        expected_attach_type: attach_type,
        ..ProgramLoad::default()
    };
    // SAFETY: the command only reads: `instruction_count` instructions of 8 bytes from the slice, which this
    // function borrows, and a C string that is static. `log_buffer` is null and `log_level` 0, so no log is
    // written.
    let fd = unsafe { call(PROG_LOAD, &mut attributes) }?;
    // SAFETY: the command returns a descriptor that it has just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Creates a map.
///
/// # Errors
/// The kernel's refusal.
pub fn create_map(map_type: u32, key_size: u32, value_size: u32, max_entries: u32) -> io::Result<OwnedFd> {
    let mut attributes = MapCreate {
        map_type,
        key_size,
        value_size,
        max_entries,
        flags: 0,
    };
    // SAFETY: there is no address in the attributes.
    let fd = unsafe { call(MAP_CREATE, &mut attributes) }?;
    // SAFETY: the command returns a descriptor that it has just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a program to an interface of the calling thread's network namespace, until the link is closed.
///
/// # Errors
/// The kernel's refusal.
pub fn create_link(program: BorrowedFd<'_>, interface: u32, attach_type: u32) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: program.as_raw_fd() as u32,
        interface,
        attach_type,
        flags: 0,
    };
    // SAFETY: there is no address in the attributes.
    let fd = unsafe { call(LINK_CREATE, &mut attributes) }?;
    // SAFETY: the command returns a descriptor that it has just made.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins a program or map at a path on a bpf file system.
///
/// # Errors
/// When the path holds a zero byte, or the kernel refuses.
pub fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Pin {
        path: path.as_ptr() as u64,
        object: object.as_raw_fd() as u32,
        flags: 0,
    };
    // SAFETY: the command only reads, a C string that `path` keeps until the end of this function.
    unsafe { call(OBJ_PIN, &mut attributes) }?;
    Ok(())
}

/// The interface that a pinned link of XDP or tcx is attached to; 0 if it has been detached.
///
/// # Errors
/// When there is no such pin, or the kernel refuses.
pub fn pinned_link_interface(path: &Path) -> io::Result<u32> {
    let link = open_pin(path)?;
    Ok(info::<LinkInfo>(link.as_fd())?.interface)
}

/// Whether the kernel has compiled a program to machine code.
///
/// # Errors
/// The kernel's refusal.
pub fn is_jited(program: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(info::<ProgramInfo>(program)?.jited_length > 0)
}

/// How far a hash map has been read; starts as the default.
#[derive(Debug, Default)]
pub struct Cursor(Option<u64>);

/// Reads the next entries of a hash map (Linux 5.6): writes the first of `keys` and `values`, and returns how
/// many it has written and whether these are the last. Entries that come and go meanwhile may be missed or
/// seen twice.
///
/// # Errors
/// The kernel's refusal; `ENOSPC` where a bucket has more entries than there is room for.
///
/// # Panics
/// When the slices differ in length.
///
/// # Safety
/// The keys of `map` are `size_of::<K>()` bytes, its values `size_of::<V>()`.
pub unsafe fn look_up_batch<K, V>(
    map: BorrowedFd<'_>,
    cursor: &mut Cursor,
    keys: &mut [MaybeUninit<K>],
    values: &mut [MaybeUninit<V>],
) -> io::Result<(usize, bool)> {
    assert_eq!(keys.len(), values.len());
    let mut next = 0_u64;
    let mut attributes = Batch {
        in_batch: cursor.0.as_mut().map_or(0, |position| &raw mut *position as u64),
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: keys.len() as u32,
        map: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the positions are 8 bytes, of which a hash map uses 4. The kernel writes at most `count` keys
    // and values, of the sizes that the caller vouches for, into slices that are borrowed mutably and as long
    // as that.
    let ended = match unsafe { call(MAP_LOOKUP_BATCH, &mut attributes) } {
        Ok(_) => false,
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
        Err(error) => return Err(error),
    };
    cursor.0 = Some(next);
    Ok(((attributes.count as usize).min(keys.len()), ended))
}

/// Empties a pinned map: an array gets zeros (also one for each processor, Linux 5.16), a hash map and a trie
/// lose their entries. A map of another type stays as it is.
///
/// # Errors
/// When there is no such pin, or the kernel refuses.
pub fn empty_pinned_map(path: &Path) -> io::Result<()> {
    let map = open_pin(path)?;
    let info = info::<MapInfo>(map.as_fd())?;
    match info.map_type {
        MAP_TYPE_ARRAY => zero(&map, &info, 1),
        MAP_TYPE_PERCPU_ARRAY => zero(&map, &info, possible_processors()?),
        MAP_TYPE_HASH | MAP_TYPE_LRU_HASH | MAP_TYPE_LPM_TRIE => remove_all(&map, &info),
        _ => Ok(()),
    }
}

/// Writes zeros to all elements of an array.
fn zero(map: &OwnedFd, info: &MapInfo, copies: usize) -> io::Result<()> {
    let indexes: Vec<u32> = (0..info.max_entries).collect();
    let element = (info.value_size as usize).next_multiple_of(8) * copies;
    let values = vec![0_u8; element * indexes.len()];
    let mut attributes = Batch {
        in_batch: 0,
        out_batch: 0,
        keys: indexes.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: info.max_entries,
        map: map.as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the command only reads: `count` indexes of 4 bytes, and as many values, for each of which there
    // is room for the map's value size, rounded up to 8, on each processor.
    unsafe { call(MAP_UPDATE_BATCH, &mut attributes) }?;
    Ok(())
}

/// Removes all entries of a map that has keys.
fn remove_all(map: &OwnedFd, info: &MapInfo) -> io::Result<()> {
    let mut key = vec![0_u8; info.key_size as usize];
    loop {
        let mut attributes = Entry {
            map: map.as_raw_fd() as u32,
            padding: 0,
            // The first one.
            key: 0,
            value: key.as_mut_ptr() as u64,
            flags: 0,
        };
        // SAFETY: the command writes a key, for which there is room.
        match unsafe { call(MAP_NEXT_KEY, &mut attributes) } {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
            Err(error) => return Err(error),
        }
        let mut attributes = Entry {
            map: map.as_raw_fd() as u32,
            padding: 0,
            key: key.as_ptr() as u64,
            value: 0,
            flags: 0,
        };
        // SAFETY: the command reads a key.
        match unsafe { call(MAP_DELETE, &mut attributes) } {
            Ok(_) => {}
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
}

/// How many processors a map for each of them has room for.
fn possible_processors() -> io::Result<usize> {
    let range = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    let last = range.trim().rsplit(['-', ',']).next().unwrap_or_default();
    let last: usize = last.parse().map_err(io::Error::other)?;
    Ok(last + 1)
}

/// Opens a pinned object.
fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Pin {
        path: path.as_ptr() as u64,
        object: 0,
        flags: 0,
    };
    // SAFETY: the command only reads, a C string that `path` keeps until the end of this function.
    let object = unsafe { call(OBJ_GET, &mut attributes) }?;
    // SAFETY: the command returns a descriptor that it has just made.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

/// What the kernel says of an object.
fn info<T: Info>(object: BorrowedFd<'_>) -> io::Result<T> {
    let mut info = T::default();
    let mut attributes = InfoByFd {
        object: object.as_raw_fd() as u32,
        length: size_of::<T>() as u32,
        info: &raw mut info as u64,
    };
    // SAFETY: the command writes up to `length` bytes to `info`, which are that of a local variable, any
    // bytes are a valid value of it (`Info`), and nothing else refers to it during the call.
    unsafe { call(OBJ_GET_INFO_BY_FD, &mut attributes) }?;
    Ok(info)
}

/// Makes the system call; returns what it returned, which is not negative.
///
/// # Safety
/// Each address in `attributes` is 0 or points to memory that stays valid until the call returns, for as many
/// bytes as the command reads or writes there, and what it writes is valid for its owner.
unsafe fn call<T: Attributes>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: `Attributes` says that the kernel may read and write a `T` of this size; the rest is the
    // caller's.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attributes),
            size_of::<T>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    i32::try_from(result).map_err(io::Error::other)
}

/// A prefix of `union bpf_attr`.
///
/// # Safety
/// The type is `repr(C)`, laid out as the member of the union that its command uses, without padding, and any
/// bytes are a valid value of it.
unsafe trait Attributes {}

#[repr(C)]
#[derive(Default)]
struct ProgramLoad {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface: u32,
    expected_attach_type: u32,
}
// SAFETY: integers only; the sizes of the fields add up to that of the type, so there is no padding.
unsafe impl Attributes for ProgramLoad {}
const _: () = assert!(size_of::<ProgramLoad>() == 72);

#[repr(C)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}
// SAFETY: integers only; the sizes of the fields add up to that of the type, so there is no padding.
unsafe impl Attributes for MapCreate {}
const _: () = assert!(size_of::<MapCreate>() == 20);

#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    attach_type: u32,
    flags: u32,
}
// SAFETY: integers only; the sizes of the fields add up to that of the type, so there is no padding.
unsafe impl Attributes for LinkCreate {}
const _: () = assert!(size_of::<LinkCreate>() == 16);

#[repr(C)]
struct Pin {
    path: u64,
    object: u32,
    flags: u32,
}
// SAFETY: integers only; the sizes of the fields add up to that of the type, so there is no padding.
unsafe impl Attributes for Pin {}
const _: () = assert!(size_of::<Pin>() == 16);

#[repr(C)]
struct InfoByFd {
    object: u32,
    length: u32,
    info: u64,
}
// SAFETY: integers only; the sizes of the fields add up to that of the type, so there is no padding.
unsafe impl Attributes for InfoByFd {}
const _: () = assert!(size_of::<InfoByFd>() == 16);

#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}
// SAFETY: integers only; the sizes of the fields add up to that of the type, so there is no padding.
unsafe impl Attributes for Batch {}
const _: () = assert!(size_of::<Batch>() == 56);

/// The first fields of what the kernel says of an object; it fills as much as the caller has room for.
///
/// # Safety
/// The type is `repr(C)`, and any bytes are a valid value of it.
unsafe trait Info: Default {}

/// Of `struct bpf_prog_info`.
#[repr(C)]
#[derive(Default)]
struct ProgramInfo {
    program_type: u32,
    id: u32,
    tag: [u8; 8],
    jited_length: u32,
    translated_length: u32,
}
// SAFETY: integers only.
unsafe impl Info for ProgramInfo {}
const _: () = assert!(size_of::<ProgramInfo>() == 24);

#[repr(C)]
struct Entry {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}
// SAFETY: integers only; the sizes of the fields add up to that of the type, so there is no padding.
unsafe impl Attributes for Entry {}
const _: () = assert!(size_of::<Entry>() == 32);

/// Of `struct bpf_map_info`.
#[repr(C)]
#[derive(Default)]
struct MapInfo {
    map_type: u32,
    id: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}
// SAFETY: integers only.
unsafe impl Info for MapInfo {}
const _: () = assert!(size_of::<MapInfo>() == 24);

/// Of `struct bpf_link_info`, and of its member for XDP and for tcx.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    link_type: u32,
    id: u32,
    program: u32,
    padding: u32,
    interface: u32,
    attach_type: u32,
}
// SAFETY: integers only.
unsafe impl Info for LinkInfo {}
const _: () = assert!(size_of::<LinkInfo>() == 24);
