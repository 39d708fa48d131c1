//! A call stack that runs out. The engine turns faults of compiled code into traps, but its handler runs on the stack that
//! has just ended, so the kernel kills the process without a word. Its sigaction(2) finds the one here first: the handler
//! gets a stack of its own, and tells the two kinds of fault apart. Its unwinder finds one here, too, for the calls that it
//! lists at a trap.

use std::ffi::{CStr, c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

use slipway_guest::{end, exit, names, signals};
use slipway_protocol::{Cause, End};

/// Stack of the handler in bytes: for the engine's, which unwinds the program's, and for ours, which reads a file.
const HANDLER_STACK: usize = 256 << 10;
/// A frame of compiled code reaches so far below the stack's end at most.
const LARGEST_FRAME: usize = 64 << 20;
const EXHAUSTED: &str = "trap: call stack exhausted";

/// The engine's handler of SIGSEGV.
static ENGINES: AtomicUsize = AtomicUsize::new(0);
/// Above this address is no frame of compiled code; 0 until the stack is watched.
static TOP: AtomicUsize = AtomicUsize::new(0);
/// Where the artefact's code is.
static CODE: [AtomicUsize; 2] = [const { AtomicUsize::new(0) }; 2];

unsafe extern "C" {
    /// The C library's own.
    fn __sigaction(
        signal: c_int,
        action: *const libc::sigaction,
        old: *mut libc::sigaction,
    ) -> c_int;
}

/// sigaction(2) as the engine calls it before compiled code runs.
///
/// # Safety
/// sigaction(2)'s.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(
    signal: c_int,
    action: *const libc::sigaction,
    old: *mut libc::sigaction,
) -> c_int {
    let watched = signal == libc::SIGSEGV && TOP.load(Ordering::Relaxed) != 0;
    // SAFETY: passed on as it came, or with another handler of the same kind.
    unsafe {
        match action.as_ref() {
            Some(action) if watched && action.sa_flags & libc::SA_SIGINFO != 0 => {
                ENGINES.store(action.sa_sigaction, Ordering::Release);
                let mut ours = *action;
                ours.sa_sigaction = on_fault as *const () as libc::sighandler_t;
                ours.sa_flags |= libc::SA_ONSTACK;
                __sigaction(signal, &raw const ours, old)
            }
            _ => __sigaction(signal, action, old),
        }
    }
}

/// Gives the handler of faults its stack; before a seccomp filter, which may forbid it.
pub fn give_to_handler() {
    let stack = libc::stack_t {
        ss_sp: Box::leak(vec![0u8; HANDLER_STACK].into_boxed_slice())
            .as_mut_ptr()
            .cast(),
        ss_flags: 0,
        ss_size: HANDLER_STACK,
    };
    // SAFETY: the stack is never freed. It replaces that of Rust's library; a failure leaves that one.
    unsafe { libc::sigaltstack(&raw const stack, ptr::null_mut()) };
}

/// Has the end of the call stack told, for the code of this artefact, which is loaded. Makes no system call.
pub fn watch(artefact: &CStr) {
    let mut here = 0u8;
    // SAFETY: the callback gets the pointer that is given here.
    unsafe { libc::dl_iterate_phdr(Some(find_code), artefact.as_ptr().cast_mut().cast()) };
    signals::prepare(libc::SIGSEGV, End::new(134, Cause::Trap, EXHAUSTED));
    TOP.store(&raw mut here as usize, Ordering::Relaxed);
}

/// Takes down where the code of the object with this path is.
unsafe extern "C" fn find_code(
    object: *mut libc::dl_phdr_info,
    _size: usize,
    path: *mut c_void,
) -> c_int {
    // SAFETY: the loader's description of an object, and the string of the caller above.
    unsafe {
        let object = &*object;
        if object.dlpi_name.is_null()
            || CStr::from_ptr(object.dlpi_name) != CStr::from_ptr(path.cast())
        {
            return 0;
        }
        let headers = std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into());
        let code = headers
            .iter()
            .find(|h| h.p_type == libc::PT_LOAD && h.p_flags & libc::PF_X != 0);
        if let Some(code) = code {
            let start = (object.dlpi_addr + code.p_vaddr) as usize;
            CODE[0].store(start, Ordering::Relaxed);
            CODE[1].store(start + code.p_memsz as usize, Ordering::Relaxed);
        }
    }
    1
}

/// What an unwinder is given for each frame: a context, and what the caller wants back.
type Visit = unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int;

unsafe extern "C" {
    /// The program counter of a frame.
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}

/// Who looks at the frames, and with what.
struct Visitor {
    visit: Visit,
    argument: *mut c_void,
}

/// The unwinder as the engine calls it for the functions that were being called at a trap: without the frames that are
/// not the module's. The engine takes its own for frames of the function that lies last in the artefact.
///
/// # Safety
/// The unwinder's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn _Unwind_Backtrace(visit: Visit, argument: *mut c_void) -> c_int {
    type Backtrace = unsafe extern "C" fn(Visit, *mut c_void) -> c_int;
    let mut visitor = Visitor { visit, argument };
    // SAFETY: the function of the same name that comes next, by its type in the ABI; the visitor lives during the call.
    unsafe {
        let next = libc::dlsym(libc::RTLD_NEXT, c"_Unwind_Backtrace".as_ptr());
        match next.is_null() {
            true => 0,
            false => std::mem::transmute::<*mut c_void, Backtrace>(next)(
                visit_code,
                (&raw mut visitor).cast(),
            ),
        }
    }
}

unsafe extern "C" fn visit_code(context: *mut c_void, visitor: *mut c_void) -> c_int {
    // SAFETY: the unwinder's context, and the visitor of the caller above.
    unsafe {
        let visitor = &*visitor.cast::<Visitor>();
        // Where it returns to: behind the last instruction of all, where that is a call that does not return.
        match is_code(_Unwind_GetIP(context).wrapping_sub(1)) {
            true => (visitor.visit)(context, visitor.argument),
            false => 0,
        }
    }
}

/// Whether an address is in the artefact's code.
fn is_code(address: usize) -> bool {
    let [start, stop] = [0, 1].map(|i| CODE[i].load(Ordering::Relaxed));
    (start..stop).contains(&address)
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's description of the fault, and the engine's own handler, called as the kernel would.
    unsafe {
        let (at, pointer) = registers(context.cast());
        if !ran_out((*info).si_addr() as usize, pointer) {
            let engines = ENGINES.load(Ordering::Acquire) as *const ();
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            return std::mem::transmute::<*const (), Handler>(engines)(signal, info, context);
        }
        if !is_code(at) {
            // In the engine or the C library, which may hold a lock: nothing but what was prepared.
            signals::say(signal);
            exit(134)
        }
        // Compiled code holds no lock: what follows may do as in an ordinary call.
        let name = function_at(at).map(names::name);
        let reason = name.map_or(EXHAUSTED.to_string(), |name| {
            format!("{EXHAUSTED} in {name}")
        });
        end(End::new(134, Cause::Trap, reason))
    }
}

/// Whether a fault at this address is the stack's end: near the stack pointer, where nothing else is mapped (the kernel
/// leaves 128 MiB free below the stack).
fn ran_out(address: usize, pointer: usize) -> bool {
    address < TOP.load(Ordering::Relaxed) && address.abs_diff(pointer) <= LARGEST_FRAME
}

/// Program counter and stack pointer at a fault.
///
/// # Safety
/// The context is the kernel's.
unsafe fn registers(context: *const libc::ucontext_t) -> (usize, usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let registers = &(*context).uc_mcontext;
        #[cfg(target_arch = "x86_64")]
        return (
            registers.gregs[libc::REG_RIP as usize] as usize,
            registers.gregs[libc::REG_RSP as usize] as usize,
        );
        #[cfg(target_arch = "aarch64")]
        return (registers.pc as usize, registers.sp as usize);
    }
}

/// The index of the compiled function at an address: the engine's compiler names its symbols f0, f1, ….
fn function_at(address: usize) -> Option<u32> {
    // SAFETY: the structure is filled where the answer is not 0; the name lives as long as the artefact.
    unsafe {
        let mut found: libc::Dl_info = std::mem::zeroed();
        if libc::dladdr(address as *const c_void, &raw mut found) == 0 || found.dli_sname.is_null()
        {
            return None;
        }
        let symbol = CStr::from_ptr(found.dli_sname).to_str().ok()?;
        symbol.strip_prefix('f')?.parse().ok()
    }
}
