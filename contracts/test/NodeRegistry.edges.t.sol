// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {INodeRegistry} from "../src/interfaces/INodeRegistry.sol";
import {Base} from "./Base.sol";

/// @notice What only one changed character of the registry would change.
contract RegistryEdgesTest is Base {
    uint256 private constant NODES_SLOT = 4;

    function _lock() internal returns (uint48) {
        vm.prank(address(escrow));
        return registry.lockBond(node.addr);
    }

    function _release(bool disputed, bool lost, uint256 slash) internal returns (uint256 slashed, uint256 compensated) {
        vm.prank(address(escrow));
        return registry.releaseBond(node.addr, disputed, lost, slash, 0);
    }

    function _assertRecord(uint32 bonds, uint32 paid, uint32 disputed, uint32 lost) internal view {
        (uint32 actualBonds, uint32 actualPaid, uint32 actualDisputed, uint32 actualLost) = registry.recordOf(node.addr);
        assertEq(actualBonds, bonds, "bonds");
        assertEq(actualPaid, paid, "paid");
        assertEq(actualDisputed, disputed, "disputed");
        assertEq(actualLost, lost, "lost");
    }

    /// @dev The word of the record: unbonding stake, then bonds, paid, disputed, lost.
    function _setRecord(uint32 bonds, uint32 paid, uint32 disputed, uint32 lost) internal {
        uint256 slot = uint256(keccak256(abi.encode(node.addr, NODES_SLOT))) + 1;
        uint256 word = uint256(bonds) << 128 | uint256(paid) << 160 | uint256(disputed) << 192 | uint256(lost) << 224;
        vm.store(address(registry), bytes32(slot), bytes32(word));
        _assertRecord(bonds, paid, disputed, lost);
    }

    // ── Locking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev Though what is left covers the bond.
    function test_BelowTheMinimumNoBondIsLocked() external {
        vm.prank(node.addr);
        registry.startUnbond(1);
        assertEq(_lock(), 0);
        _assertRecord(0, 0, 0, 0);
    }

    function test_ANodeOfAsManyBondsAsCanBeCountedTakesNoMore() external {
        uint32 most = type(uint32).max;
        _setRecord(most, 0, 0, 0);
        vm.deal(address(this), uint256(most) * BOND);
        registry.stake{value: uint256(most) * BOND}(node.addr);
        assertEq(_lock(), 0);
        _assertRecord(most, 0, 0, 0);
        _setRecord(most - 1, 0, 0, 0);
        assertEq(_lock(), 1);
        _assertRecord(most, 0, 0, 0);
    }

    // ── Releasing ───────────────────────────────────────────────────────────────────────────────────────────────────

    function test_EachEndOfAJobIsCountedInItsPlace() external {
        _setRecord(9, 10, 20, 30);
        vm.expectEmit(address(registry));
        emit INodeRegistry.BondReleased(node.addr, 8, 11, 20, 30);
        _release(false, false, 0);
        vm.expectEmit(address(registry));
        emit INodeRegistry.BondReleased(node.addr, 7, 12, 21, 30);
        _release(true, false, 0);
        vm.expectEmit(address(registry));
        emit INodeRegistry.BondReleased(node.addr, 6, 12, 22, 31);
        _release(true, true, 0);
        _assertRecord(6, 12, 22, 31);
    }

    function test_CountersStopAtTheirEnd() external {
        uint32 most = type(uint32).max;
        _setRecord(3, most - 1, most - 1, most - 1);
        _release(true, true, 0);
        _release(true, false, 0);
        _assertRecord(1, most, most, most);
        _release(true, true, 0);
        _assertRecord(0, most, most, most);
        _setRecord(1, most, most, most);
        _release(false, false, 0);
        _assertRecord(0, most, most, most);
    }

    // ── Slashing ────────────────────────────────────────────────────────────────────────────────────────────────────

    function test_WhereNothingIsSlashedNothingIsTold() external {
        assertEq(_lock(), 1);
        vm.recordLogs();
        (uint256 slashed,) = _release(true, true, 0);
        assertEq(slashed, 0);
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i = 0; i < logs.length; ++i) {
            assertNotEq(logs[i].topics[0], INodeRegistry.Slashed.selector);
        }
    }

    function test_OneWeiIsSlashed() external {
        assertEq(_lock(), 1);
        (uint256 slashed,) = _release(true, true, 1);
        assertEq(slashed, 1);
        (uint128 active,,) = registry.stakeOf(node.addr);
        assertEq(active, MIN_STAKE - 1);
    }

    function test_NoMoreIsSlashedThanBothPocketsHold() external {
        assertEq(_lock(), 1);
        vm.prank(node.addr);
        registry.startUnbond(MIN_STAKE - 3);
        (uint256 slashed,) = _release(true, true, 100 ether);
        assertEq(slashed, MIN_STAKE);
        (uint128 active, uint128 unbonding,) = registry.stakeOf(node.addr);
        assertEq(uint256(active) + unbonding, 0);
        assertEq(address(registry).balance, 0);
    }

    // ── The minimum ─────────────────────────────────────────────────────────────────────────────────────────────────

    /// @dev Only a higher one gives notice.
    function test_TheSameMinimumTakesEffectAtOnce() external {
        vm.expectEmit(address(registry));
        emit INodeRegistry.MinStakeSet(MIN_STAKE, uint64(block.timestamp));
        vm.prank(owner);
        registry.setMinStake(MIN_STAKE);
    }
}
