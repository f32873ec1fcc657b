# The options of NixOS that mvm's modules set, with their types; an option that is not here is refused, as NixOS would.
# Names and types are those of NixOS 26.05.
{ lib, pkgs, ... }:
let
  inherit (lib) mkOption types;
  option = type: default: mkOption { inherit type default; };
  bool = option types.bool;
  texts = option (types.listOf types.str) [ ];
  free = option (types.attrsOf types.anything) { };
  setting = types.nullOr (types.oneOf [ types.bool types.int types.str ]);
  unit = types.submodule {
    options = {
      enable = bool true;
      description = option types.str "";
      after = texts;
      before = texts;
      requires = texts;
      wants = texts;
      bindsTo = texts;
      partOf = texts;
      wantedBy = texts;
      requiredBy = texts;
      path = option (types.listOf types.anything) [ ];
      # NixOS gives every service a search path of its own.
      environment = option (types.attrsOf (types.nullOr (types.oneOf [ types.str types.path types.package ]))) { };
      unitConfig = free;
      serviceConfig = free;
      restartIfChanged = bool true;
    };
    config.environment.PATH = "/store/default-path/bin";
  };
  user = types.submodule {
    options = {
      uid = option (types.nullOr types.int) null;
      group = option types.str "";
      isSystemUser = bool false;
      isNormalUser = bool false;
      home = option types.path "/var/empty";
      description = option types.str "";
      extraGroups = texts;
    };
  };
in
{
  options = {
    boot = {
      initrd.availableKernelModules = texts;
      initrd.enable = bool true;
      kernel.enable = bool true;
      kernel.sysctl = mkOption {
        type = types.attrsOf setting;
        default = { };
      };
      kernelModules = texts;
      kernelPackages = option types.raw pkgs.linuxPackages;
      loader.grub.enable = bool true;
      modprobeConfig.enable = bool true;
    };
    documentation.enable = bool true;
    environment.defaultPackages = option (types.listOf types.package) [ pkgs.nano ];
    environment.systemPackages = option (types.listOf types.package) [ ];
    fileSystems = option (types.attrsOf (
      types.submodule {
        options = {
          device = option (types.nullOr types.str) null;
          fsType = option types.str "auto";
          options = option (types.listOf types.str) [ "defaults" ];
          neededForBoot = bool false;
        };
      }
    )) { };
    networking = {
      dhcpcd.denyInterfaces = texts;
      dhcpcd.enable = bool true;
      firewall.checkReversePath = option (types.oneOf [ types.bool (types.enum [ "strict" "loose" ]) ]) true;
      firewall.enable = bool true;
      firewall.extraInputRules = option types.lines "";
      hostName = option types.str "nixos";
      networkmanager.unmanaged = texts;
      nftables.enable = bool false;
      nftables.flushRuleset = bool true;
      resolvconf.enable = bool true;
      useDHCP = bool true;
      useNetworkd = bool false;
    };
    nix.enable = bool true;
    nix.package = option types.package pkgs.nix;
    nix.settings = free;
    programs.command-not-found.enable = bool true;
    security.sudo.enable = bool true;
    services = {
      journald.storage = option (types.enum [ "persistent" "volatile" "auto" "none" ]) "persistent";
      nscd.enable = bool true;
      timesyncd.enable = bool true;
      udev.enable = bool true;
    };
    system = {
      build = option types.raw { toplevel = pkgs.stub "nixos-system"; };
      nssModules = option (types.listOf types.package) [ pkgs.nano ];
      stateVersion = option types.str "26.05";
      switch.enable = bool true;
    };
    systemd = {
      coredump.enable = bool true;
      network.wait-online.enable = bool true;
      oomd.enable = bool true;
      services = option (types.attrsOf unit) { };
      timers = option (types.attrsOf (types.submodule { options.enable = bool true; })) { };
      tmpfiles.rules = texts;
    };
    # Of NixOS's test machines.
    virtualisation.memorySize = option types.ints.positive 1024;
    virtualisation.qemu.options = texts;
    users = {
      allowNoPasswordLogin = bool false;
      groups = option (types.attrsOf (
        types.submodule { options.gid = option (types.nullOr types.int) null; }
      )) { };
      mutableUsers = bool true;
      users = option (types.attrsOf user) { };
    };
  };

  # What NixOS itself sets, where mvm's modules have to go before it.
  config.boot.kernel.sysctl = {
    "kernel.kptr_restrict" = lib.mkDefault 1;
    "kernel.core_pattern" = lib.mkDefault "core";
    "kernel.printk" = lib.mkDefault 4;
  };
}
