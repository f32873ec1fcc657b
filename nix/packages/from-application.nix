# OpenClaw as an application flake (github:openclaw/nix-openclaw) packages it, laid out as guests expect it; null when the
# flake has none. The Discord channel is npm's where the flake's package does not have it.
{
  pkgs,
  application,
  system,
}:
let
  inherit (pkgs) lib;
  offered = application.packages.${system} or { };
  found = offered.openclaw-gateway or offered.openclaw or null;
  fromNpm = import ./openclaw.nix { inherit pkgs; };
in
if found == null then
  null
else
  pkgs.runCommand "openclaw-of-${found.name or "application"}"
    {
      nativeBuildInputs = [ pkgs.python3 ];
      passthru.version = found.version or "unknown";
    }
    ''
      python3 ${./lay_out.py} ${found} ${fromNpm} "$out"
    ''
