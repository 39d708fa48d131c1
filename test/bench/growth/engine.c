// engine ARTEFACT: runs an artefact's _start under WasmEdge alone: no sandbox, no budget, nothing of Slipway's.
#include <stdio.h>
#include <wasmedge/wasmedge.h>

int main(int count, char **arguments) {
  if (count != 2) return 2;
  WasmEdge_ConfigureContext *configure = WasmEdge_ConfigureCreate();
  WasmEdge_ConfigureAddHostRegistration(configure, WasmEdge_HostRegistration_Wasi);
  // Without it the artefact would be interpreted, without a word.
  WasmEdge_ConfigureSetRunMode(configure, WasmEdge_RunMode_AOT);
  WasmEdge_VMContext *vm = WasmEdge_VMCreate(configure, NULL);
  WasmEdge_ModuleInstanceInitWASI(WasmEdge_VMGetImportModuleContext(vm, WasmEdge_HostRegistration_Wasi), NULL, 0, NULL, 0, NULL, 0);
  WasmEdge_Result result = WasmEdge_VMRunWasmFromFile(vm, arguments[1], WasmEdge_StringWrap("_start", 6), NULL, 0, NULL, 0);
  if (!WasmEdge_ResultOK(result)) {
    fprintf(stderr, "engine: %s: %s\n", arguments[1], WasmEdge_ResultGetMessage(result));
    return 1;
  }
  return 0;
}
