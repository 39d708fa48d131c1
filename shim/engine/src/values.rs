//! Numbers as a command line gives them, and types as people read them.

use crate::ffi;
use crate::log::Error;

/// A function's type.
pub struct FunctionType {
    pub params: Vec<ffi::ValType>,
    pub returns: Vec<ffi::ValType>,
}

impl FunctionType {
    pub fn of(kind: *const ffi::FunctionType) -> Self {
        let none = ffi::ValType { data: [0; 8] };
        // SAFETY: the type lives as long as the module, which the caller has; the arrays have room for what there is.
        unsafe {
            let (n, m) = (
                ffi::WasmEdge_FunctionTypeGetParametersLength(kind),
                ffi::WasmEdge_FunctionTypeGetReturnsLength(kind),
            );
            let (mut params, mut returns) = (vec![none; n as usize], vec![none; m as usize]);
            ffi::WasmEdge_FunctionTypeGetParameters(kind, params.as_mut_ptr(), n);
            ffi::WasmEdge_FunctionTypeGetReturns(kind, returns.as_mut_ptr(), m);
            Self { params, returns }
        }
    }
}

impl std::fmt::Display for FunctionType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = |kinds: &[ffi::ValType]| {
            let names: Vec<_> = kinds.iter().map(|kind| name(*kind)).collect();
            names.join(", ")
        };
        write!(f, "({}) -> ({})", text(&self.params), text(&self.returns))
    }
}

/// A value type as the text format spells it.
fn name(kind: ffi::ValType) -> &'static str {
    match number(kind) {
        Some(Number::I32) => "i32",
        Some(Number::I64) => "i64",
        Some(Number::F32) => "f32",
        Some(Number::F64) => "f64",
        // SAFETY: a plain value.
        None if unsafe { ffi::WasmEdge_ValTypeIsV128(kind) } => "v128",
        None => "a reference",
    }
}

/// A value type that a command line can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Number {
    I32,
    I64,
    F32,
    F64,
}

fn number(kind: ffi::ValType) -> Option<Number> {
    // SAFETY: plain values.
    unsafe {
        [
            (ffi::WasmEdge_ValTypeIsI32(kind), Number::I32),
            (ffi::WasmEdge_ValTypeIsI64(kind), Number::I64),
            (ffi::WasmEdge_ValTypeIsF32(kind), Number::F32),
            (ffi::WasmEdge_ValTypeIsF64(kind), Number::F64),
        ]
    }
    .into_iter()
    .find_map(|(is, number)| is.then_some(number))
}

pub fn parse(kind: ffi::ValType, text: &str) -> Result<ffi::Value, Error> {
    let bad = |what: &str| Error(format!("argument {text:?} is not {what}"));
    // SAFETY: plain values.
    unsafe {
        match number(kind) {
            Some(Number::I32) => text
                .parse()
                .map(|v| ffi::WasmEdge_ValueGenI32(v))
                .map_err(|_| bad("an i32")),
            Some(Number::I64) => text
                .parse()
                .map(|v| ffi::WasmEdge_ValueGenI64(v))
                .map_err(|_| bad("an i64")),
            Some(Number::F32) => text
                .parse()
                .map(|v| ffi::WasmEdge_ValueGenF32(v))
                .map_err(|_| bad("an f32")),
            Some(Number::F64) => text
                .parse()
                .map(|v| ffi::WasmEdge_ValueGenF64(v))
                .map_err(|_| bad("an f64")),
            None => Err(bad(
                "possible: the function takes a vector or a reference, which a command line cannot give",
            )),
        }
    }
}

pub fn show(value: ffi::Value) -> String {
    // SAFETY: plain values.
    unsafe {
        match number(value.kind) {
            Some(Number::I32) => ffi::WasmEdge_ValueGetI32(value).to_string(),
            Some(Number::I64) => ffi::WasmEdge_ValueGetI64(value).to_string(),
            Some(Number::F32) => ffi::WasmEdge_ValueGetF32(value).to_string(),
            Some(Number::F64) => ffi::WasmEdge_ValueGetF64(value).to_string(),
            None => "?".into(),
        }
    }
}
