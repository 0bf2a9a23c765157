#!/usr/bin/env bash
# What README.md says under "Set-up", on a new machine: nothing else may be needed.
set -euo pipefail

"$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../deploy/setup"
