# Node.js of the major version that mvm runs OpenClaw on, and not older than OpenClaw starts on.
{ pkgs }:
let
  least = "24.16";
  node = pkgs.nodejs_24;
in
if pkgs.lib.versionAtLeast node.version least then
  node
else
  throw "nixpkgs has Node.js ${node.version}, and OpenClaw needs ${least}: update the input nixpkgs"
