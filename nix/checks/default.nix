# Checks of the flake, for whoever has nixpkgs: guests that boot in NixOS's own test machines, and a host.
{
  self,
  nixpkgs,
  system,
}:
let
  pkgs = nixpkgs.legacyPackages.${system};
in
{
  guests = import ./guests.nix { inherit self pkgs; };
  host = import ./host.nix { inherit self pkgs; };
}
