// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";
import {Test} from "forge-std/Test.sol";

import {IJobEscrow} from "../src/interfaces/IJobEscrow.sol";
import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";

/// @dev The contract as the tests, which are compiled with other settings, may know it.
interface IDeployment {
    struct Parameters {
        address owner;
        uint96 minStake;
        uint128 bond;
        uint64 unbondingPeriod;
        uint64 thawPeriod;
        uint32 maxChallengeWindow;
        uint64 arbiterPeriod;
    }

    error ZeroOwner();

    function registry() external view returns (address);
    function escrow() external view returns (address);
}

/// @dev The script, likewise.
interface IDeploy {
    function run() external returns (address deployment);
    function accept(address registry, address escrow) external;
}

/// @notice `Deployment` and the script that sends it. What `scripts/deploy` does around them is tested in Rust.
contract DeployTest is Test {
    /// @dev Of EIP-3860.
    uint256 internal constant MAX_INIT_CODE = 49_152;
    /// @dev Of EIP-170, and what must be left of it.
    uint256 internal constant MAX_CODE = 24_576;
    uint256 internal constant ROOM = 1000;
    uint256 internal constant KEY = 0xbeef;

    address internal immutable OWNER = vm.addr(KEY);

    IDeployment.Parameters internal p = IDeployment.Parameters({
        owner: OWNER,
        minStake: 5_000_000_000_000_000_001,
        bond: 500_000_000_000_000_000,
        unbondingPeriod: 20,
        thawPeriod: 10,
        maxChallengeWindow: 15,
        arbiterPeriod: 2
    });

    function test_BothContractsHaveTheirParametersAndEachOther() external {
        IDeployment deployment = _deploy();
        IJobEscrow escrow = IJobEscrow(deployment.escrow());
        INodeRegistry registry = INodeRegistry(deployment.registry());
        assertEq(address(registry), vm.computeCreateAddress(address(deployment), 1));
        assertEq(address(escrow), vm.computeCreateAddress(address(deployment), 2));
        assertEq(escrow.registry(), address(registry));
        assertEq(registry.escrow(), address(escrow));
        assertEq(escrow.thawPeriod(), 10);
        assertEq(escrow.maxChallengeWindow(), 15);
        assertEq(escrow.arbiterPeriod(), 2);
        assertEq(registry.minStake(), 5_000_000_000_000_000_001);
        assertEq(registry.bond(), 500_000_000_000_000_000);
        assertEq(registry.unbondingPeriod(), 20);
    }

    function test_OnlyTheNamedOwnerCanAccept() external {
        IDeployment deployment = _deploy();
        address[2] memory owned = [deployment.registry(), deployment.escrow()];
        for (uint256 i = 0; i < owned.length; ++i) {
            Ownable2Step c = Ownable2Step(owned[i]);
            assertEq(c.owner(), address(deployment));
            assertEq(c.pendingOwner(), OWNER);
            vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, address(this)));
            c.acceptOwnership();
            vm.prank(OWNER);
            c.acceptOwnership();
            assertEq(c.owner(), OWNER);
            assertEq(c.pendingOwner(), address(0));
        }
    }

    function test_RevertWhen_OwnershipWouldBeOfferedToNobody() external {
        p.owner = address(0);
        _refuses(abi.encodeWithSelector(IDeployment.ZeroOwner.selector));
    }

    function test_RevertWhen_StakeCouldLeaveBeforeADisputeIsDecided() external {
        p.unbondingPeriod = 17;
        _refuses(abi.encodeWithSelector(IJobEscrow.UnbondingTooShort.selector, 17, 18));
    }

    function test_InitCodeFitsWithinEip3860() external view {
        assertLe(vm.getCode("Deployment.sol:Deployment").length + 7 * 32, MAX_INIT_CODE);
    }

    function test_BothContractsAreDeployedWithRoomBelowEip170() external {
        IDeployment deployment = _deploy();
        assertLe(deployment.escrow().code.length, MAX_CODE - ROOM, "JobEscrow");
        assertLe(deployment.registry().code.length, MAX_CODE - ROOM, "NodeRegistry");
    }

    /// @dev One test, because the environment belongs to the whole process.
    function test_TheScriptDeploysOnceAndAcceptsForItsOwner() external {
        IDeploy script = IDeploy(vm.deployCode("Deploy.s.sol:Deploy"));
        vm.setEnv("OWNER", vm.toString(OWNER));
        vm.setEnv("MIN_STAKE", vm.toString(p.minStake));
        vm.setEnv("BOND", vm.toString(p.bond));
        vm.setEnv("UNBONDING_PERIOD", "20");
        vm.setEnv("THAW_PERIOD", "10");
        vm.setEnv("MAX_CHALLENGE_WINDOW", "15");
        vm.setEnv("ARBITER_PERIOD", "2");

        IDeployment deployment = IDeployment(script.run());
        bytes memory initCode = abi.encodePacked(vm.getCode("Deployment.sol:Deployment"), abi.encode(p));
        assertEq(address(deployment), vm.computeCreate2Address(0, keccak256(initCode), CREATE2_FACTORY));
        assertEq(Ownable2Step(deployment.escrow()).pendingOwner(), OWNER);
        assertEq(script.run(), address(deployment), "a second run finds the first one's");

        vm.setEnv("DEPLOYER_KEY", vm.toString(bytes32(KEY)));
        script.run();
        assertEq(Ownable(deployment.registry()).owner(), OWNER);
        assertEq(Ownable(deployment.escrow()).owner(), OWNER);
        script.accept(deployment.registry(), deployment.escrow());

        vm.setEnv("THAW_PERIOD", "18446744073709551616");
        vm.expectRevert("THAW_PERIOD is too large");
        script.run();
    }

    function _deploy() internal returns (IDeployment) {
        return IDeployment(vm.deployCode("Deployment.sol:Deployment", abi.encode(p)));
    }

    function _refuses(bytes memory reason) internal {
        bytes memory initCode = abi.encodePacked(vm.getCode("Deployment.sol:Deployment"), abi.encode(p));
        vm.expectRevert(reason);
        assembly ("memory-safe") {
            if iszero(create(0, add(initCode, 0x20), mload(initCode))) {
                returndatacopy(0, 0, returndatasize())
                revert(0, returndatasize())
            }
        }
    }
}
