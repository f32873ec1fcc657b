# A host whose agent answers, to root and to who is in its group, and to nobody else.
{ self, pkgs }:
pkgs.testers.runNixOSTest {
  name = "mvm-host";

  nodes.host = {
    imports = [ self.nixosModules.mvm-host ];
    services.mvm.host = {
      enable = true;
      package = self.packages.${pkgs.stdenv.hostPlatform.system}.mvm;
    };
    users.users.operator = {
      isNormalUser = true;
      extraGroups = [ "mvm" ];
    };
    users.users.stranger.isNormalUser = true;
  };

  testScript = ''
    host.wait_for_unit("mvm-agent.service")
    host.wait_for_file("/run/mvm/agent.sock")
    host.succeed("mvm agent status")
    host.succeed("su operator -c 'mvm tenant list'")
    host.fail("su stranger -c 'MVM_NO_AUTOSTART=1 mvm tenant list'")
    host.succeed("systemctl restart mvm-agent.service")
    host.wait_until_succeeds("mvm agent status")
  '';
}
