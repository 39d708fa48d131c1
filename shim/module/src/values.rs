//! How much a module makes the compiler do for each byte of its code: the bound of it.
//!
//! A few bytes can declare what takes the compiler gigabytes: 50,000 locals in eight bytes, or, by the index of a type
//! with a thousand results, as many values at every block, branch and call. What a compiler emits uses the values that it
//! declares, and each use is an instruction. So values are counted, and a module may have no more than its code can use.

use wasmparser::types::Types;
use wasmparser::{
    BinaryReaderError, CompositeInnerType, FuncToValidate, FuncValidatorAllocations, FunctionBody,
    ModuleArity, Operator, OperatorsReader, Parser, Payload, SubType, ValidPayload, Validator,
    ValidatorResources,
};

use crate::problem::{Problem, Reason};
use crate::proposals::enabled;
use crate::{FREE_VALUES, VALUES_PER_CODE_BYTE};

/// What the smallest function takes of the compiler, in values: 3.4 KB of memory, where a local takes 300 bytes.
const VALUES_PER_FUNCTION: u64 = 10;

/// Validates a binary module, and says where it has too many values.
pub(crate) fn validate(
    binary: &[u8],
) -> Result<(Option<Types>, Option<Problem>), BinaryReaderError> {
    let mut validator = Validator::new_with_features(enabled());
    let mut parser = Parser::new(0);
    parser.set_features(enabled());
    let mut count = Count::default();
    let mut declared = Vec::new();
    let mut functions = Vec::new();
    let mut types = None;
    for payload in parser.parse_all(binary) {
        let payload = payload?;
        match &payload {
            Payload::TypeSection(section) => {
                for group in section.clone() {
                    declared.extend(group?.types().map(values_of_type));
                }
            }
            Payload::CodeSectionStart { size, .. } => count.code_bytes = u64::from(*size),
            _ => {}
        }
        match validator.payload(&payload)? {
            ValidPayload::Func(function, body) => functions.push((function, body)),
            ValidPayload::End(all) => types = Some(all),
            _ => {}
        }
    }
    for (index, own) in declared.into_iter().enumerate() {
        count.add("type", index, own);
    }
    let mut allocations = FuncValidatorAllocations::default();
    for (function, body) in functions {
        let index = function.index as usize;
        let own;
        (own, allocations) = values_of_function(function, &body, allocations)?;
        count.add("function", index, own);
    }
    Ok((types, count.problem))
}

/// The values of a module so far.
#[derive(Default)]
struct Count {
    code_bytes: u64,
    values: u64,
    /// Where they became too many.
    problem: Option<Problem>,
}

impl Count {
    fn add(&mut self, what: &str, index: usize, own: u64) {
        self.values += own;
        let (values, code_bytes) = (self.values, self.code_bytes);
        let limit = VALUES_PER_CODE_BYTE * code_bytes + FREE_VALUES;
        if values <= limit || self.problem.is_some() {
            return;
        }
        let text = format!(
            "{what} {index} declares {own} values (parameters, results and locals, and those of its blocks, branches and calls), with which the \
             module has {values}, more than the {limit} allowed with {code_bytes} bytes of code"
        );
        let remedy = "build it with fewer: optimised code of compilers has a tenth of that";
        self.problem = Some(Problem::new(Reason::TooLarge, text, remedy));
    }
}

fn values_of_type(ty: &SubType) -> u64 {
    match &ty.composite_type.inner {
        CompositeInnerType::Func(function) => {
            (function.params().len() + function.results().len()) as u64
        }
        // Off here: the validator refuses them.
        _ => 0,
    }
}

/// Validates a function and counts its values.
fn values_of_function(
    function: FuncToValidate<ValidatorResources>,
    body: &FunctionBody<'_>,
    allocations: FuncValidatorAllocations,
) -> Result<(u64, FuncValidatorAllocations), BinaryReaderError> {
    let mut validator = function.into_validator(allocations);
    let mut reader = body.get_binary_reader();
    validator.read_locals(&mut reader)?;
    reader.set_features(enabled());
    // Parameters are locals; the results are those of the last `end`.
    let mut values = VALUES_PER_FUNCTION + u64::from(validator.len_locals());
    let mut operators = OperatorsReader::new(reader);
    while !operators.eof() {
        let (operator, offset) = operators.read_with_offset()?;
        values += values_of_operator(&operator, &validator);
        validator.op(offset, &operator)?;
    }
    operators.finish()?;
    Ok((values, validator.into_allocations()))
}

/// The values of an instruction that has as many as a type says; any other has a handful.
fn values_of_operator(operator: &Operator<'_>, module: &impl ModuleArity) -> u64 {
    let times = match operator {
        Operator::BrTable { targets } => u64::from(targets.len()) + 1,
        Operator::Block { .. }
        | Operator::Loop { .. }
        | Operator::If { .. }
        | Operator::Else
        | Operator::End
        | Operator::Br { .. }
        | Operator::BrIf { .. }
        | Operator::Return
        | Operator::Call { .. }
        | Operator::CallIndirect { .. }
        | Operator::ReturnCall { .. }
        | Operator::ReturnCallIndirect { .. } => 1,
        _ => return 0,
    };
    // One that is not valid has none; the validator will say so.
    let (taken, given) = operator.operator_arity(module).unwrap_or_default();
    times * (u64::from(taken) + u64::from(given))
}
