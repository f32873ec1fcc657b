# Builds images: a guest with nix in it.
{ lib, pkgs, ... }:
{
  imports = [ ../guests/baseline.nix ];
  services.mvm.guest.role = "builder";

  nix.enable = true;
  nix.settings.experimental-features = [
    "nix-command"
    "flakes"
  ];
  # The store is a read-only layer under memory; what is built belongs on the data drive.
  nix.settings.build-dir = lib.mkDefault "/data";
  environment.systemPackages = [ pkgs.git ];
}
