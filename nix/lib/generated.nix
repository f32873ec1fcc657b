# What mvm itself says of its guests (scripts/render_nix.py); the only thing that these modules know of them.
let
  read = name: builtins.fromJSON (builtins.readFile (../generated + "/${name}.json"));
in
{
  services = read "services";
  drives = read "drives";
  machine = read "machine";
}
