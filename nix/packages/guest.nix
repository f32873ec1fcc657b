# The guest's program as one file, compiled for the Python that runs it, and mvm's plugin for OpenClaw.
{ pkgs, python }:
let
  sources = import ../lib/sources.nix;
in
{
  zipapp = pkgs.runCommand "mvm-guest" { nativeBuildInputs = [ python ]; } ''
    mkdir "$out"
    PYTHONPATH=${sources.python} python3 -B ${./make_zipapp.py} "$out/guest.pyz"
  '';
  inherit (sources) plugin;
}
