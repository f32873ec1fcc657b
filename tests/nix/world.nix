# What the tests look at, as data: guests of every role, a host, and the options of mvm's modules.
{
  repository,
  # The nixpkgs to evaluate with: the stand-in beside this file, or a real one.
  nixpkgs ? null,
}:
let
  system = "x86_64-linux";
  stand-in = import ./nixpkgs/lib.nix;
  lib = if nixpkgs == null then stand-in else import (nixpkgs + "/lib");
  nixosSystem =
    if nixpkgs == null then stand-in.nixosSystem else arguments: import (nixpkgs + "/nixos/lib/eval-config.nix") arguments;

  flake = repository + "/nix";
  manifest = builtins.fromTOML (builtins.readFile (flake + "/mvm-profiles.toml"));
  evaluated =
    modules:
    nixosSystem {
      inherit system modules;
    };
  roles = lib.mapAttrs (
    _: role:
    evaluated [
      (flake + "/${role.module}")
      (flake + "/${manifest.profiles.minimal.module}")
    ]
  ) manifest.roles;

  ours = name: lib.elem name known;
  known = lib.attrNames (builtins.fromJSON (builtins.readFile (flake + "/generated/services.json"))).units;
  unit = described: {
    inherit (described)
      after
      before
      bindsTo
      description
      environment
      requires
      serviceConfig
      unitConfig
      wantedBy
      wants
      ;
  };

  # Options declared below a set of them, with what is written of them.
  declared =
    options:
    lib.concatMap (
      name:
      let
        option = options.${name};
      in
      if option._type or "" == "option" then
        [
          {
            inherit name;
            typed = option ? type;
            described = (option.description or "") != "";
          }
        ]
      else
        map (each: each // { name = "${name}.${each.name}"; }) (declared option)
    ) (lib.attrNames options);

  host = evaluated [
    (flake + "/hosts/mvm-host.nix")
    { services.mvm.host.enable = true; }
  ];
in
{
  guests = lib.mapAttrs (
    _: guest:
    let
      inherit (guest) config;
    in
    {
      units = lib.mapAttrs (_: unit) (lib.filterAttrs (name: _: ours name) config.systemd.services);
      inherit (config.services.mvm.guest) drives layout role;
      sysctl = config.boot.kernel.sysctl;
      mounts = lib.attrNames config.fileSystems;
      users = lib.mapAttrs (_: user: { inherit (user) uid group home isSystemUser; }) (
        lib.filterAttrs (name: _: name == "openclaw" || name == "router") config.users.users
      );
      groups = lib.mapAttrs (_: group: group.gid) (
        lib.filterAttrs (name: _: name == "openclaw" || name == "router") config.users.groups
      );
      waiting = {
        udev = config.services.udev.enable;
        settling = config.systemd.services.systemd-udev-settle.enable;
        online = config.systemd.network.wait-online.enable;
        dhcp = config.networking.useDHCP;
      };
      packages = map (package: package.name) config.environment.systemPackages;
      nix = {
        inherit (config.nix) enable;
        settings = if config.nix.enable then config.nix.settings else { };
      };
      links = config.systemd.tmpfiles.rules;
    }
  ) roles;
  options = declared roles.gateway.options.services.mvm ++ declared host.options.services.mvm;
  host = {
    unit = unit host.config.systemd.services.mvm-agent;
    inherit (host.config.networking.firewall) extraInputRules;
    inherit (host.config.networking.nftables) flushRuleset;
    groups = lib.attrNames host.config.users.groups;
  };
}
