#!/bin/bash
# status.sh ID prints running, success or failed. A job that PBS does not know, or no longer knows, has failed.
# LSF:  bjobs -noheader -o "stat exit_code" "$1"      SGE:  qstat -j "$1", then qacct -j "$1" | grep exit_status
set -uo pipefail
if ! facts=$(qstat -x -f "$1" 2> /dev/null); then
  echo failed
elif ! grep -q 'job_state = F' <<< "$facts"; then
  echo running
elif grep -q 'Exit_status = 0$' <<< "$facts"; then
  echo success
else
  echo failed
fi
