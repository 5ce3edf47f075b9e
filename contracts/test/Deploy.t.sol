// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Ownable} from "@openzeppelin/contracts/access/Ownable.sol";
import {Test} from "forge-std/Test.sol";

import {IJobEscrow} from "../src/interfaces/IJobEscrow.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";

/// @dev The script as the tests, which are compiled with other settings, may know it.
interface IDeploy {
    struct Deployment {
        uint256 deployBlock;
        address registry;
        address escrow;
        address testToken;
    }

    error OutOfRange(string parameter, uint256 value, uint256 largest);

    function run() external returns (Deployment memory);
}

/// @notice The deployment script and the manifest that indexer, API and cli read.
contract DeployTest is Test {
    string internal constant PATH = ".littoral/forge-test/deeper/manifest.json";

    address internal constant OWNER = address(0xbeef);

    IDeploy internal script;
    string internal json;

    /// @dev One test, because the environment belongs to the whole process.
    function test_DeploysAndWritesTheManifest() external {
        script = IDeploy(vm.deployCode("Deploy.s.sol:Deploy"));
        vm.setEnv("LITTORAL_DEPLOYMENT", PATH);
        vm.setEnv("MIN_STAKE", "5000000000000000001");
        vm.setEnv("UNBONDING_PERIOD", "20");
        vm.setEnv("THAW_PERIOD", "10");
        vm.setEnv("OWNER", vm.toString(OWNER));
        vm.roll(77);

        IDeploy.Deployment memory local = _run();
        assertTrue(local.testToken != address(0));
        assertEq(vm.parseJsonAddress(json, ".tokens.TEST"), local.testToken);

        vm.chainId(11_155_111);
        IDeploy.Deployment memory sepolia = _run();
        assertEq(sepolia.testToken, address(0));
        assertEq(vm.parseJsonKeys(json, ".tokens").length, 0);

        _refuses("THAW_PERIOD", 365 days + 1, 365 days);
        _refuses("UNBONDING_PERIOD", 365 days + 1, 365 days);
        _refuses("MIN_STAKE", uint256(type(uint96).max) + 1, type(uint96).max);
        vm.removeDir(".littoral/forge-test", true);
    }

    function _run() internal returns (IDeploy.Deployment memory deployment) {
        deployment = script.run();
        json = vm.readFile(PATH);
        IJobEscrow escrow = IJobEscrow(deployment.escrow);
        INodeRegistry registry = INodeRegistry(deployment.registry);
        assertEq(escrow.registry(), address(registry));
        assertEq(escrow.thawPeriod(), 10);
        assertEq(registry.minStake(), 5_000_000_000_000_000_001);
        assertEq(registry.unbondingPeriod(), 20);

        assertEq(vm.parseJsonUint(json, ".chainId"), block.chainid);
        assertEq(vm.parseJsonAddress(json, ".escrow"), address(escrow));
        assertEq(vm.parseJsonAddress(json, ".registry"), address(registry));
        assertEq(vm.parseJsonUint(json, ".deployBlock"), 77);
        assertEq(vm.parseJsonUint(json, ".escrowParams.thawPeriod"), 10);
        assertEq(vm.parseJsonAddress(json, ".escrowParams.owner"), OWNER);
        assertEq(Ownable(address(escrow)).owner(), OWNER);
        assertEq(vm.parseJsonAddress(json, ".registryParams.owner"), OWNER);
        assertEq(Ownable(address(registry)).owner(), OWNER);
        assertEq(registry.escrow(), address(escrow));
        assertEq(registry.bond(), 500_000_000_000_000_000);
        assertEq(vm.parseJsonString(json, ".registryParams.bond"), "500000000000000000");
        assertEq(escrow.maxChallengeWindow(), 15);
        assertEq(vm.parseJsonUint(json, ".escrowParams.maxChallengeWindow"), 15);
        assertEq(escrow.arbiterPeriod(), 2);
        assertEq(vm.parseJsonUint(json, ".escrowParams.arbiterPeriod"), 2);
        assertEq(vm.parseJsonString(json, ".registryParams.minStake"), "5000000000000000001");
        assertEq(vm.parseJsonUint(json, ".registryParams.unbondingPeriod"), 20);
    }

    function _refuses(string memory parameter, uint256 value, uint256 largest) internal {
        vm.setEnv(parameter, vm.toString(value));
        vm.expectRevert(abi.encodeWithSelector(IDeploy.OutOfRange.selector, parameter, value, largest));
        script.run();
        vm.setEnv(parameter, "1");
    }
}
