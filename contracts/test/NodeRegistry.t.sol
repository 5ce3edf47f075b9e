// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {Base} from "./Base.sol";
import {ReentrantReceiver, RejectingReceiver} from "./mocks/HostileTokens.sol";

contract RegisterTest is Base {
    bytes32 internal constant NODE_ID = keccak256("node id");
    address internal operator = makeAddr("operator");
    address internal payout = makeAddr("payout");

    function setUp() public override {
        super.setUp();
        vm.deal(operator, 100 ether);
    }

    function _key() internal pure returns (bytes memory) {
        return abi.encode(keccak256("public key"));
    }

    function _register(bytes32 nodeId, uint256 value) internal {
        vm.prank(operator);
        registry.register{value: value}(nodeId, _key(), payout, 4, _operations(), "uri");
    }

    function _operationsOf(uint256 count, uint256 length) internal pure returns (string[] memory operations) {
        operations = new string[](count);
        for (uint256 i = 0; i < count; ++i) {
            operations[i] = string(new bytes(length));
        }
    }

    // ── Register ────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_RegistersWithAStake() external {
        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeUpdated(operator, NODE_ID, _key(), payout, 4, _operations(), "uri");
        vm.expectEmit(address(registry));
        emit INodeRegistry.Staked(operator, operator, 2 ether, 2 ether);
        _register(NODE_ID, 2 ether);
        assertEq(registry.nodeIdOf(operator), NODE_ID);
        assertEq(registry.nodeOf(NODE_ID), operator);
        assertEq(registry.payoutOf(operator), payout);
        (uint128 active, uint128 unbonding, uint64 unbondEnd) = registry.stakeOf(operator);
        assertEq(active, 2 ether);
        assertEq(unbonding, 0);
        assertEq(unbondEnd, 0);
        assertTrue(registry.isStaked(operator));
    }

    function test_RegistersWithoutAStake() external {
        vm.recordLogs();
        _register(NODE_ID, 0);
        assertEq(vm.getRecordedLogs().length, 1);
        assertEq(registry.nodeOf(NODE_ID), operator);
        assertFalse(registry.isStaked(operator));
        assertEq(registry.stakedNumberOf(operator), 0);
    }

    function test_NumbersNodesInTheOrderTheyRegister() external {
        assertEq(registry.stakedNumberOf(node.addr), 1);
        _register(NODE_ID, MIN_STAKE);
        assertEq(registry.stakedNumberOf(operator), 2);
        assertEq(registry.nodeAt(1), node.addr);
        assertEq(registry.nodeAt(2), operator);
        assertEq(registry.nodeAt(0), address(0));
        assertEq(registry.nodeAt(3), address(0));
    }

    function testFuzz_IsStakedFromTheMinimumOn(uint256 amount) external {
        amount = bound(amount, 0, 10 ether);
        _register(NODE_ID, amount);
        assertEq(registry.isStaked(operator), amount >= MIN_STAKE);
        assertEq(registry.stakedNumberOf(operator), amount >= MIN_STAKE ? 2 : 0);
    }

    function test_AStrangerIsNotStakedEvenWithoutAMinimum() external {
        registry = INodeRegistry(_deploy("NodeRegistry", abi.encode(0, UNBONDING_PERIOD, BOND, address(escrow), owner)));
        assertFalse(registry.isStaked(operator));
        _register(NODE_ID, 0);
        assertTrue(registry.isStaked(operator));
    }

    function test_TakesTheLongestOfEverything() external {
        vm.prank(operator);
        registry.register(NODE_ID, _key(), payout, type(uint32).max, _operationsOf(64, 64), string(new bytes(512)));
        assertEq(registry.nodeOf(NODE_ID), operator);
    }

    function test_RevertWhen_NodeIdIsZero() external {
        vm.expectRevert(INodeRegistry.ZeroNodeId.selector);
        _register(0, 0);
    }

    function test_RevertWhen_RegisteredBefore() external {
        _register(NODE_ID, 0);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.AlreadyRegistered.selector, operator));
        _register(keccak256("another"), 0);
    }

    function test_RevertWhen_NodeIdIsTaken() external {
        bytes32 taken = registry.nodeIdOf(node.addr);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NodeIdTaken.selector, taken));
        _register(taken, 0);
    }

    function testFuzz_RevertWhen_ThePublicKeyHasAnotherLength(uint8 length) external {
        vm.assume(length != 32);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.WrongKeyLength.selector, length, 32));
        vm.prank(operator);
        registry.register(NODE_ID, new bytes(length), payout, 4, _operations(), "uri");
    }

    function test_RevertWhen_PayoutIsZero() external {
        vm.expectRevert(INodeRegistry.ZeroAddress.selector);
        vm.prank(operator);
        registry.register(NODE_ID, _key(), address(0), 4, _operations(), "uri");
    }

    function test_RevertWhen_CapacityIsZero() external {
        vm.expectRevert(INodeRegistry.ZeroCapacity.selector);
        vm.prank(operator);
        registry.register(NODE_ID, _key(), payout, 0, _operations(), "uri");
    }

    function test_RevertWhen_ThereAreNoOperations() external {
        vm.expectRevert(INodeRegistry.NoOperations.selector);
        vm.prank(operator);
        registry.register(NODE_ID, _key(), payout, 4, new string[](0), "uri");
    }

    function test_RevertWhen_AnOperationHasNoName() external {
        vm.expectRevert(INodeRegistry.NoOperations.selector);
        vm.prank(operator);
        registry.register(NODE_ID, _key(), payout, 4, new string[](1), "uri");
    }

    function _registerTooLong(string[] memory operations, string memory uri, string memory field, uint256 longest)
        internal
    {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.TooLong.selector, field, longest + 1, longest));
        vm.prank(operator);
        registry.register(NODE_ID, _key(), payout, 4, operations, uri);
    }

    function test_RevertWhen_SomethingIsTooLong() external {
        _registerTooLong(_operationsOf(65, 1), "", "operations", 64);
        _registerTooLong(_operationsOf(1, 65), "", "operation", 64);
        _registerTooLong(_operations(), string(new bytes(513)), "uri", 512);
    }

    // ── Update ──────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_UpdateReplacesEverythingButTheNodeId() external {
        _register(NODE_ID, 1 ether);
        string[] memory operations = _operationsOf(1, 3);
        address other = makeAddr("other payout");
        vm.expectEmit(address(registry));
        emit INodeRegistry.NodeUpdated(operator, NODE_ID, new bytes(32), other, 9, operations, "");
        vm.prank(operator);
        registry.update(new bytes(32), other, 9, operations, "");
        assertEq(registry.payoutOf(operator), other);
        assertEq(registry.nodeIdOf(operator), NODE_ID);
        assertEq(registry.stakedNumberOf(operator), 2);
    }

    function test_RevertWhen_UpdatingWithoutRegistration() external {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotRegistered.selector, operator));
        vm.prank(operator);
        registry.update(_key(), payout, 4, _operations(), "uri");
    }

    function test_RevertWhen_AnUpdateIsInvalid() external {
        _register(NODE_ID, 0);
        vm.startPrank(operator);
        vm.expectRevert(INodeRegistry.ZeroAddress.selector);
        registry.update(_key(), address(0), 4, _operations(), "uri");
        vm.expectRevert(INodeRegistry.ZeroCapacity.selector);
        registry.update(_key(), payout, 0, _operations(), "uri");
        assertEq(registry.payoutOf(operator), payout);
    }
}

contract StakeTest is Base {
    // ── Stake ───────────────────────────────────────────────────────────────────────────────────────────────────────

    function testFuzz_AnyoneMayAddToAStake(address from, uint96 amount) external {
        amount = uint96(bound(amount, 1, type(uint96).max));
        vm.assume(from != address(0));
        vm.deal(from, amount);
        vm.expectEmit(address(registry));
        emit INodeRegistry.Staked(node.addr, from, amount, MIN_STAKE + uint256(amount));
        vm.prank(from);
        registry.stake{value: amount}(node.addr);
        _assertStake(MIN_STAKE + uint256(amount), 0, 0);
    }

    function _assertStake(uint256 active, uint256 unbonding, uint256 unbondEnd) internal view {
        (uint128 actualActive, uint128 actualUnbonding, uint64 actualEnd) = registry.stakeOf(node.addr);
        assertEq(actualActive, active, "stake");
        assertEq(actualUnbonding, unbonding, "unbonding");
        assertEq(actualEnd, unbondEnd, "unbondEnd");
    }

    function test_RevertWhen_StakingNothing() external {
        vm.expectRevert(INodeRegistry.ZeroAmount.selector);
        registry.stake(node.addr);
    }

    function test_RevertWhen_StakingForAStranger() external {
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotRegistered.selector, otherNode.addr));
        vm.prank(requester.addr);
        registry.stake{value: 1}(otherNode.addr);
    }

    function test_RevertWhen_TheStakeWouldOverflow() external {
        vm.deal(requester.addr, type(uint256).max);
        vm.startPrank(requester.addr);
        vm.expectRevert();
        registry.stake{value: uint256(type(uint128).max) + 1}(node.addr);
        vm.expectRevert();
        registry.stake{value: type(uint128).max}(node.addr);
        _assertStake(MIN_STAKE, 0, 0);
    }

    // ── Start unbonding ─────────────────────────────────────────────────────────────────────────────────────────────

    function testFuzz_UnbondingLeavesTheActiveStake(uint256 amount) external {
        amount = bound(amount, 1, MIN_STAKE);
        uint64 end = uint64(block.timestamp) + UNBONDING_PERIOD;
        vm.expectEmit(address(registry));
        emit INodeRegistry.Unbonding(node.addr, MIN_STAKE - amount, amount, end);
        vm.prank(node.addr);
        registry.startUnbond(amount);
        _assertStake(MIN_STAKE - amount, amount, end);
        assertFalse(registry.isStaked(node.addr));
        assertEq(address(registry).balance, MIN_STAKE);
    }

    function test_UnbondingMoreRestartsTheTime() external {
        vm.startPrank(node.addr);
        registry.startUnbond(0.4 ether);
        skip(UNBONDING_PERIOD);
        registry.startUnbond(0.1 ether);
        uint64 end = uint64(block.timestamp) + UNBONDING_PERIOD;
        _assertStake(0.5 ether, 0.5 ether, end);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.StillUnbonding.selector, end));
        registry.finishUnbond();
    }

    function test_RevertWhen_UnbondingNothing() external {
        vm.expectRevert(INodeRegistry.ZeroAmount.selector);
        vm.prank(node.addr);
        registry.startUnbond(0);
    }

    function testFuzz_RevertWhen_UnbondingMoreThanIsStaked(uint256 amount) external {
        amount = bound(amount, uint256(MIN_STAKE) + 1, type(uint256).max);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.InsufficientStake.selector, MIN_STAKE, amount));
        vm.prank(node.addr);
        registry.startUnbond(amount);
    }

    function test_RevertWhen_AStrangerUnbonds() external {
        vm.startPrank(otherNode.addr);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotRegistered.selector, otherNode.addr));
        registry.startUnbond(1);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.NotRegistered.selector, otherNode.addr));
        registry.finishUnbond();
    }

    // ── Finish unbonding ────────────────────────────────────────────────────────────────────────────────────────────

    function testFuzz_UnbondedStakeGoesToThePayoutAddress(uint256 amount, uint32 wait) external {
        amount = bound(amount, 1, MIN_STAKE);
        address payout = makeAddr("payout");
        vm.startPrank(node.addr);
        registry.update(new bytes(32), payout, 1, _operations(), "");
        registry.startUnbond(amount);
        skip(UNBONDING_PERIOD + uint256(wait));
        vm.expectEmit(address(registry));
        emit INodeRegistry.Unbonded(node.addr, payout, amount, MIN_STAKE - amount);
        assertEq(registry.finishUnbond(), amount);
        assertEq(payout.balance, amount);
        assertEq(address(registry).balance, MIN_STAKE - amount);
        _assertStake(MIN_STAKE - amount, 0, 0);
    }

    function testFuzz_RevertWhen_StillUnbonding(uint256 wait) external {
        vm.startPrank(node.addr);
        registry.startUnbond(1);
        uint64 end = uint64(block.timestamp) + UNBONDING_PERIOD;
        skip(bound(wait, 0, UNBONDING_PERIOD - 1));
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.StillUnbonding.selector, end));
        registry.finishUnbond();
    }

    function test_RevertWhen_NothingUnbonds() external {
        vm.startPrank(node.addr);
        vm.expectRevert(INodeRegistry.NothingUnbonding.selector);
        registry.finishUnbond();
        registry.startUnbond(1);
        skip(UNBONDING_PERIOD);
        registry.finishUnbond();
        vm.expectRevert(INodeRegistry.NothingUnbonding.selector);
        registry.finishUnbond();
    }

    function test_RevertWhen_ThePayoutAddressRejectsTheCoin() external {
        address payout = address(new RejectingReceiver());
        vm.startPrank(node.addr);
        registry.update(new bytes(32), payout, 1, _operations(), "");
        registry.startUnbond(1);
        skip(UNBONDING_PERIOD);
        vm.expectRevert(abi.encodeWithSelector(INodeRegistry.TransferFailed.selector, payout));
        registry.finishUnbond();
        _assertStake(MIN_STAKE - 1, 1, block.timestamp);
        registry.update(new bytes(32), node.addr, 1, _operations(), "");
        assertEq(registry.finishUnbond(), 1);
    }

    function test_AReentrantPayoutGetsItsStakeOnce() external {
        ReentrantReceiver operator = new ReentrantReceiver();
        bytes memory registration = abi.encodeCall(
            INodeRegistry.register, (keccak256("re"), new bytes(32), address(operator), 1, _operations(), "")
        );
        operator.execute{value: MIN_STAKE}(address(registry), MIN_STAKE, registration);
        operator.execute(address(registry), 0, abi.encodeCall(INodeRegistry.startUnbond, (MIN_STAKE)));
        skip(UNBONDING_PERIOD);
        operator.arm(address(registry), abi.encodeCall(INodeRegistry.finishUnbond, ()));
        operator.execute(address(registry), 0, abi.encodeCall(INodeRegistry.finishUnbond, ()));
        assertFalse(operator.succeeded());
        assertEq(bytes4(operator.returned()), INodeRegistry.NothingUnbonding.selector);
        assertEq(address(operator).balance, MIN_STAKE);
        assertEq(address(registry).balance, MIN_STAKE);
    }
}
