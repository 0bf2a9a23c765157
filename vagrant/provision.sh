#!/usr/bin/env bash
# What README says under "Set-up", on a new machine: no more than that must be needed.
set -euo pipefail

"$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")/../deploy/setup"
