//! The part of WasmEdge's C API (0.17, `wasmedge/*.h`) that Slipway calls, and nothing that is not called.

#![allow(missing_docs)] // upstream's headers document them, under the same names

use std::ffi::{c_char, c_void};

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Str {
    pub length: u32,
    pub buf: *const c_char,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Res {
    pub code: u32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ValType {
    pub data: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Value {
    pub value: u128,
    pub kind: ValType,
}

#[repr(C)]
pub struct LogMessage {
    pub message: Str,
    pub logger: Str,
    pub level: i32,
    pub time: i64,
    pub thread: u64,
}

macro_rules! opaque {
    ($($name:ident)*) => { $(#[repr(C)] pub struct $name { _private: [u8; 0] })* };
}
opaque! { Configure Loader Validator Executor Store AstModule Module Function FunctionType ExportType Compiler }

pub const PROPOSAL_FUNCTION_REFERENCES: i32 = 9;
pub const PROPOSAL_GC: i32 = 10;
pub const PROPOSAL_EXCEPTION_HANDLING: i32 = 14;
pub const PROPOSAL_MEMORY64: i32 = 15;
pub const PROPOSAL_COMPONENT: i32 = 17;
pub const RUN_MODE_AOT: i32 = 2;
pub const ERR_TERMINATED: u32 = 1;
pub const LOG_ERROR: i32 = 4;

unsafe extern "C" {
    pub fn WasmEdge_ConfigureCreate() -> *mut Configure;
    pub fn WasmEdge_ConfigureDelete(c: *mut Configure);
    pub fn WasmEdge_ConfigureRemoveProposal(c: *mut Configure, proposal: i32);
    pub fn WasmEdge_ConfigureSetRunMode(c: *mut Configure, mode: i32);
    pub fn WasmEdge_ConfigureCompilerSetOptimizationLevel(c: *mut Configure, level: i32);
    pub fn WasmEdge_ConfigureCompilerSetOutputFormat(c: *mut Configure, format: i32);

    pub fn WasmEdge_LoaderCreate(c: *const Configure) -> *mut Loader;
    pub fn WasmEdge_LoaderDelete(l: *mut Loader);
    pub fn WasmEdge_LoaderParseFromFile(
        l: *mut Loader,
        m: *mut *mut AstModule,
        path: *const c_char,
    ) -> Res;
    pub fn WasmEdge_LoaderParseFromBuffer(
        l: *mut Loader,
        m: *mut *mut AstModule,
        bytes: *const u8,
        length: u32,
    ) -> Res;
    pub fn WasmEdge_ValidatorCreate(c: *const Configure) -> *mut Validator;
    pub fn WasmEdge_ValidatorDelete(v: *mut Validator);
    pub fn WasmEdge_ValidatorValidate(v: *mut Validator, m: *const AstModule) -> Res;
    pub fn WasmEdge_ASTModuleDelete(m: *mut AstModule);
    pub fn WasmEdge_ASTModuleListExportsLength(m: *const AstModule) -> u32;
    pub fn WasmEdge_ASTModuleListExports(
        m: *const AstModule,
        out: *mut *const ExportType,
        len: u32,
    ) -> u32;
    pub fn WasmEdge_ExportTypeGetExternalName(e: *const ExportType) -> Str;
    pub fn WasmEdge_ExportTypeGetFunctionType(
        m: *const AstModule,
        e: *const ExportType,
    ) -> *const FunctionType;
    pub fn WasmEdge_FunctionTypeGetParametersLength(t: *const FunctionType) -> u32;
    pub fn WasmEdge_FunctionTypeGetParameters(
        t: *const FunctionType,
        out: *mut ValType,
        len: u32,
    ) -> u32;
    pub fn WasmEdge_FunctionTypeGetReturnsLength(t: *const FunctionType) -> u32;
    pub fn WasmEdge_FunctionTypeGetReturns(
        t: *const FunctionType,
        out: *mut ValType,
        len: u32,
    ) -> u32;

    pub fn WasmEdge_ExecutorCreate(c: *const Configure, statistics: *mut c_void) -> *mut Executor;
    pub fn WasmEdge_ExecutorInstantiate(
        e: *mut Executor,
        out: *mut *mut Module,
        s: *mut Store,
        m: *const AstModule,
    ) -> Res;
    pub fn WasmEdge_ExecutorRegisterImport(
        e: *mut Executor,
        s: *mut Store,
        m: *const Module,
    ) -> Res;
    pub fn WasmEdge_ExecutorInvoke(
        e: *mut Executor,
        f: *const Function,
        params: *const Value,
        n: u32,
        returns: *mut Value,
        m: u32,
    ) -> Res;
    pub fn WasmEdge_StoreCreate() -> *mut Store;
    pub fn WasmEdge_ModuleInstanceCreateWASI(
        args: *const *const c_char,
        nargs: u32,
        envs: *const *const c_char,
        nenvs: u32,
        preopens: *const *const c_char,
        npreopens: u32,
    ) -> *mut Module;
    pub fn WasmEdge_ModuleInstanceWASIGetExitCode(m: *const Module) -> u32;
    pub fn WasmEdge_ModuleInstanceFindFunction(m: *const Module, name: Str) -> *mut Function;

    pub fn WasmEdge_ValTypeIsI32(t: ValType) -> bool;
    pub fn WasmEdge_ValTypeIsI64(t: ValType) -> bool;
    pub fn WasmEdge_ValTypeIsF32(t: ValType) -> bool;
    pub fn WasmEdge_ValTypeIsF64(t: ValType) -> bool;
    pub fn WasmEdge_ValTypeIsV128(t: ValType) -> bool;
    pub fn WasmEdge_ValueGenI32(v: i32) -> Value;
    pub fn WasmEdge_ValueGenI64(v: i64) -> Value;
    pub fn WasmEdge_ValueGenF32(v: f32) -> Value;
    pub fn WasmEdge_ValueGenF64(v: f64) -> Value;
    pub fn WasmEdge_ValueGetI32(v: Value) -> i32;
    pub fn WasmEdge_ValueGetI64(v: Value) -> i64;
    pub fn WasmEdge_ValueGetF32(v: Value) -> f32;
    pub fn WasmEdge_ValueGetF64(v: Value) -> f64;

    pub fn WasmEdge_ResultOK(r: Res) -> bool;
    pub fn WasmEdge_ResultGetCode(r: Res) -> u32;
    pub fn WasmEdge_ResultGetMessage(r: Res) -> *const c_char;
    pub fn WasmEdge_LogSetLevel(level: i32);
    pub fn WasmEdge_LogSetCallback(callback: Option<unsafe extern "C" fn(*const LogMessage)>);
    pub fn WasmEdge_VersionGet() -> *const c_char;

    pub fn WasmEdge_CompilerCreate(c: *const Configure) -> *mut Compiler;
    pub fn WasmEdge_CompilerDelete(c: *mut Compiler);
    pub fn WasmEdge_CompilerCompileFromBuffer(
        c: *mut Compiler,
        bytes: *const u8,
        len: u64,
        out: *const c_char,
    ) -> Res;
}
