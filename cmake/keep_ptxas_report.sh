#!/bin/sh
# Compiler launcher for nvcc: runs the command and keeps what `ptxas -v` reports (registers, spills, stack frame of every
# kernel and architecture) in <object>.ptxas.txt beside the object. Other messages still reach the terminal.
object=
previous=
for argument in "$@"; do
  [ "$previous" = "-o" ] && object=$argument
  previous=$argument
done
case "$object" in
  *.o) ;;
  *) exec "$@" ;;
esac
report="$object.ptxas.txt"
"$@" 2>"$report.tmp"
status=$?
grep -E '^ptxas info|^ +[0-9]+ bytes|^[ ]*ptxas' "$report.tmp" >"$report"
grep -vE '^ptxas info|^ +[0-9]+ bytes stack frame' "$report.tmp" >&2
rm -f "$report.tmp"
exit $status
