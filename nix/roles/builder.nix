# Builds images: a guest with nix in it.
{ lib, pkgs, ... }:
let
  inherit (import ../lib/generated.nix) machine;
in
{
  imports = [ ../guests/baseline.nix ];
  services.mvm.guest.role = "builder";

  nix.enable = true;
  # What the builder of Debian's packages is told, too. The store is a read-only layer under memory; what is built belongs
  # on the data drive.
  nix.settings = machine.nixOfBuilders // {
    build-dir = lib.mkDefault "/data";
  };
  environment.systemPackages = [ pkgs.git ];
}
