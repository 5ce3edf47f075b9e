// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Script, console} from "forge-std/Script.sol";
import {VmSafe} from "forge-std/Vm.sol";

import {JobEscrow} from "../contracts/src/JobEscrow.sol";
import {NodeRegistry} from "../contracts/src/NodeRegistry.sol";
import {TestToken} from "../contracts/test/mocks/TestToken.sol";

/// @title Deploys the marketplace and writes the deployments manifest
/// @notice Run it with
/// ```
/// forge script scripts/Deploy.s.sol --broadcast --slow --rpc-url $RPC_URL --private-key $KEY
/// ```
/// from the project's root. Parameters come from the environment:
/// - `MIN_STAKE`: wei a node must have staked to be given open orders; 1 ether.
/// - `UNBONDING_PERIOD`, `THAW_PERIOD`: seconds; 7 days and 1 hour.
/// - `MAX_CHALLENGE_WINDOW`, `ARBITER_PERIOD`: seconds; three quarters and an eighth of the unbonding period, which must
///   exceed both together.
/// - `BOND`: wei of stake at risk in one job that an arbiter may decide; a tenth of `MIN_STAKE`.
/// - `OWNER`: the contracts' first owner; the account that deploys.
/// - `LITTORAL_DEPLOYMENT`: where the manifest goes; `.littoral/deployments/<chainid>.json`. Any path under `.littoral`,
///   absolute or relative to the project's root, works, and its folders are created. `foundry.toml` allows no other.
///
/// On a local chain (31337) a test token comes with it, listed in the manifest as `TEST`.
///
/// Warning: The manifest is written when the transactions are made up, just before they are sent. If `forge` then exits
/// non-zero, it names contracts that may not exist. Without `--broadcast` nothing is sent or written.
contract Deploy is Script {
    uint256 internal constant LOCAL_CHAIN_ID = 31337;
    /// @dev Longer than this is a mistake in units, and nothing could mend it after deployment.
    uint256 internal constant MAX_PERIOD = 365 days;

    /// @notice A period above `MAX_PERIOD` or an amount beyond uint96.
    error OutOfRange(string parameter, uint256 value, uint256 largest);

    struct Deployment {
        uint256 deployBlock;
        NodeRegistry registry;
        JobEscrow escrow;
        /// Zero but on a local chain.
        address testToken;
    }

    function run() external returns (Deployment memory deployment) {
        uint256 minStake = _param("MIN_STAKE", 1 ether, type(uint96).max);
        uint256 unbondingPeriod = _param("UNBONDING_PERIOD", 7 days, MAX_PERIOD);
        uint256 thawPeriod = _param("THAW_PERIOD", 1 hours, MAX_PERIOD);

        uint256 maxWindow = _param("MAX_CHALLENGE_WINDOW", unbondingPeriod * 3 / 4, MAX_PERIOD);
        uint256 arbiterPeriod = _param("ARBITER_PERIOD", unbondingPeriod / 8, MAX_PERIOD);
        uint256 bond = _param("BOND", minStake / 10, type(uint96).max);
        address owner = vm.envOr("OWNER", msg.sender);

        // Read before anything is sent: the indexer must not start behind the first event.
        deployment.deployBlock = vm.getBlockNumber();
        vm.startBroadcast();
        // forge-lint: disable-start(unsafe-typecast)
        // `_param` has checked the ranges.
        address escrow = vm.computeCreateAddress(_deployer(), vm.getNonce(_deployer()) + 1);
        deployment.registry = new NodeRegistry(uint128(minStake), uint64(unbondingPeriod), uint128(bond), escrow, owner);
        deployment.escrow = new JobEscrow(
            address(deployment.registry), uint64(thawPeriod), owner, uint32(maxWindow), uint64(arbiterPeriod)
        );
        // forge-lint: disable-end(unsafe-typecast)
        if (block.chainid == LOCAL_CHAIN_ID) deployment.testToken = address(new TestToken());
        vm.stopBroadcast();

        if (!vm.isContext(VmSafe.ForgeContext.ScriptDryRun)) _writeManifest(deployment);
    }

    /// @dev Whose transactions these are.
    function _deployer() private returns (address deployer) {
        (, deployer,) = vm.readCallers();
    }

    function _param(string memory name, uint256 fallback_, uint256 largest) private view returns (uint256 value) {
        value = vm.envOr(name, fallback_);
        require(value <= largest, OutOfRange(name, value, largest));
    }

    function _writeManifest(Deployment memory deployment) private {
        string memory standard = string.concat(".littoral/deployments/", vm.toString(block.chainid), ".json");
        string memory path = vm.envOr("LITTORAL_DEPLOYMENT", standard);
        string memory tokens = deployment.testToken == address(0)
            ? "{}"
            : string.concat("{", _field("TEST", _quoted(vm.toString(deployment.testToken))), "}");
        // Put together by hand: forge's serializer writes a string of digits as a number, which JSON readers round.
        string memory json = string.concat(
            "{\n  ",
            _field("chainId", vm.toString(block.chainid)),
            ",\n  ",
            _field("escrow", _quoted(vm.toString(address(deployment.escrow)))),
            ",\n  ",
            _field("registry", _quoted(vm.toString(address(deployment.registry)))),
            ",\n  ",
            _field("deployBlock", vm.toString(deployment.deployBlock)),
            ",\n  ",
            _field("escrowParams", string.concat("{", _escrowParams(deployment.escrow), "}")),
            ",\n  ",
            _field("registryParams", string.concat("{", _registryParams(deployment.registry), "}")),
            ",\n  ",
            _field("tokens", tokens),
            "\n}\n"
        );

        string memory folder = _folderOf(path);
        if (bytes(folder).length != 0) vm.createDir(folder, true);
        vm.writeFile(path, json);
        console.log("Deployments manifest: %s", path);
    }

    function _escrowParams(JobEscrow escrow) private view returns (string memory) {
        return string.concat(
            _field("thawPeriod", vm.toString(escrow.thawPeriod())),
            ", ",
            _field("owner", _quoted(vm.toString(escrow.owner()))),
            ", ",
            _field("maxChallengeWindow", vm.toString(escrow.maxChallengeWindow())),
            ", ",
            _field("arbiterPeriod", vm.toString(escrow.arbiterPeriod()))
        );
    }

    function _registryParams(NodeRegistry registry) private view returns (string memory) {
        return string.concat(
            _field("minStake", _quoted(vm.toString(registry.minStake()))),
            ", ",
            _field("unbondingPeriod", vm.toString(registry.unbondingPeriod())),
            ", ",
            _field("bond", _quoted(vm.toString(registry.bond()))),
            ", ",
            _field("owner", _quoted(vm.toString(registry.owner())))
        );
    }

    function _field(string memory key, string memory json) private pure returns (string memory) {
        return string.concat(_quoted(key), ": ", json);
    }

    function _quoted(string memory text) private pure returns (string memory) {
        return string.concat("\"", text, "\"");
    }

    /// @dev Everything before the last slash.
    function _folderOf(string memory path) private pure returns (string memory) {
        bytes memory source = bytes(path);
        uint256 length = source.length;
        while (length != 0 && source[length - 1] != "/") --length;
        bytes memory folder = new bytes(length == 0 ? 0 : length - 1);
        for (uint256 i = 0; i < folder.length; ++i) {
            folder[i] = source[i];
        }
        return string(folder);
    }
}
