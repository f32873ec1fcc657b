# What Debian's images have in the profile of this name, beside what is OpenClaw's.
{ pkgs, ... }:
{
  services.mvm.guest.profile = "minimal";
  environment.systemPackages = [
    pkgs.curl
    pkgs.git
    pkgs.jq
    pkgs.procps
    pkgs.e2fsprogs
  ];
}
