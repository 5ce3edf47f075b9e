// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Ownable, Ownable2Step} from "@openzeppelin/contracts/access/Ownable2Step.sol";

import {Order} from "../src/interfaces/IJobEscrow.sol";
import {Base} from "./Base.sol";

/// @dev The constants, which no interface has: clients read them from the ABI.
interface IConstants {
    function MAX_FEE_BPS() external view returns (uint16);
    function DISPUTE_BOND_BPS() external view returns (uint16);
    function MAX_DEADLINE() external view returns (uint64);
    function PUBLIC_KEY_LENGTH() external view returns (uint256);
    function MAX_OPERATIONS() external view returns (uint256);
    function MAX_OPERATION_LENGTH() external view returns (uint256);
    function MAX_URI_LENGTH() external view returns (uint256);
}

/// @notice What can be read of both contracts, and owners that leave for good.
contract ViewsTest is Base {
    function test_ConstantsAreThoseOfTheDesign() external view {
        IConstants ofEscrow = IConstants(address(escrow));
        assertEq(ofEscrow.MAX_FEE_BPS(), 500);
        assertEq(ofEscrow.DISPUTE_BOND_BPS(), 500);
        assertEq(ofEscrow.MAX_DEADLINE(), 365 days);
        IConstants ofRegistry = IConstants(address(registry));
        assertEq(ofRegistry.PUBLIC_KEY_LENGTH(), 32);
        assertEq(ofRegistry.MAX_OPERATIONS(), 64);
        assertEq(ofRegistry.MAX_OPERATION_LENGTH(), 64);
        assertEq(ofRegistry.MAX_URI_LENGTH(), 512);
    }

    function test_ParametersAreThoseOfTheConstructor() external view {
        assertEq(escrow.registry(), address(registry));
        assertEq(escrow.thawPeriod(), THAW_PERIOD);
        assertEq(escrow.maxChallengeWindow(), MAX_WINDOW);
        assertEq(escrow.arbiterPeriod(), ARBITER_PERIOD);
        assertEq(escrow.feeBps(), 0);
        assertFalse(escrow.paused());
        assertEq(Ownable(address(escrow)).owner(), owner);
        assertEq(Ownable2Step(address(escrow)).pendingOwner(), address(0));
        assertEq(Ownable(address(registry)).owner(), owner);
        assertEq(Ownable2Step(address(registry)).pendingOwner(), address(0));
    }

    function test_AStrangersViewsAreZero() external view {
        _assertAccount(settler, NATIVE, 0, 0, 0);
        assertEq(escrow.earned(settler, NATIVE), 0);
        assertEq(escrow.fees(address(token)), 0);
        (uint256 claimed, uint64 coveredNonce) = escrow.channel(settler, node.addr, NATIVE);
        assertEq(claimed + coveredNonce, 0);
        (uint256 reserved, uint256 thawing, uint64 thawEnd) = escrow.reservation(settler, node.addr, NATIVE);
        assertEq(reserved + thawing + thawEnd, 0);
        (uint128 left, uint64 expiry) = escrow.session(settler, node.addr, NATIVE);
        assertEq(left + expiry, 0);
        assertFalse(escrow.isSettler(node.addr, settler));
        assertEq(registry.nodeIdOf(settler), 0);
        assertEq(registry.nodeOf(keccak256("nobody's")), address(0));
        assertEq(registry.payoutOf(settler), address(0));
        (uint128 active, uint128 unbonding, uint64 unbondEnd) = registry.stakeOf(settler);
        assertEq(uint256(active) + unbonding + unbondEnd, 0);
        (uint32 bonds, uint32 paid, uint32 disputed, uint32 lost) = registry.recordOf(settler);
        assertEq(uint256(bonds) + paid + disputed + lost, 0);
    }

    /// @dev From the first second of the notice to the last, and after it until it is released.
    function test_AReservationTellsItsNotice() external {
        _deposit(10);
        vm.startPrank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 7);
        _assertReservation(7, 0, 0);
        escrow.thawReservation(node.addr, NATIVE, 4);
        uint256 end = block.timestamp + THAW_PERIOD;
        _assertReservation(7, 4, end);
        skip(THAW_PERIOD + 1);
        _assertReservation(7, 4, end);
        escrow.releaseReservation(node.addr, NATIVE);
        _assertReservation(3, 0, 0);
    }

    /// @dev What the node drew does not thaw: no more is told to come back than is there.
    function test_AReservationTellsNoMoreToThawThanIsThere() external {
        _deposit(10);
        vm.startPrank(requester.addr);
        escrow.reserve(node.addr, NATIVE, 7);
        escrow.thawReservation(node.addr, NATIVE, 7);
        vm.stopPrank();
        _redeem(5, 1);
        _assertReservation(2, 2, block.timestamp + THAW_PERIOD);
    }

    function _assertReservation(uint256 reserved, uint256 thawing, uint256 thawEnd) internal view {
        (uint256 actual, uint256 actualThawing, uint64 actualEnd) =
            escrow.reservation(requester.addr, node.addr, NATIVE);
        assertEq(actual, reserved, "reserved");
        assertEq(actualThawing, thawing, "thawing");
        assertEq(actualEnd, thawEnd, "thawEnd");
    }

    // ── Nobody owns them any more ───────────────────────────────────────────────────────────────────────────────────

    function test_RevertWhen_AStrangerGivesUpTheOwnership() external {
        address[2] memory owned = [address(escrow), address(registry)];
        for (uint256 i = 0; i < owned.length; ++i) {
            vm.startPrank(settler);
            vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, settler));
            Ownable(owned[i]).renounceOwnership();
            vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, settler));
            Ownable(owned[i]).transferOwnership(settler);
            vm.stopPrank();
            assertEq(Ownable(owned[i]).owner(), owner);
        }
    }

    /// @dev Who was offered the ownership before cannot take it afterwards.
    function test_AnOwnershipGivenUpIsNobodys() external {
        address[2] memory owned = [address(escrow), address(registry)];
        for (uint256 i = 0; i < owned.length; ++i) {
            vm.startPrank(owner);
            Ownable(owned[i]).transferOwnership(settler);
            Ownable(owned[i]).renounceOwnership();
            vm.stopPrank();
            assertEq(Ownable(owned[i]).owner(), address(0));
            assertEq(Ownable2Step(owned[i]).pendingOwner(), address(0));
            vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, settler));
            vm.prank(settler);
            Ownable2Step(owned[i]).acceptOwnership();
            vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, owner));
            vm.prank(owner);
            Ownable(owned[i]).transferOwnership(owner);
        }
    }

    /// @dev The fee stays what it is, within each order's own limit, and everybody is paid.
    function test_WithoutAnOwnerEverythingGoesOn() external {
        vm.startPrank(owner);
        escrow.setFeeBps(100);
        Ownable(address(escrow)).renounceOwnership();
        Ownable(address(registry)).renounceOwnership();
        vm.stopPrank();
        Order memory order = _order();
        order.maxFeeBps = 100;
        _open(order);
        _submit(_result(order));
        vm.prank(node.addr);
        assertEq(escrow.withdrawEarned(NATIVE, node.addr), PRICE - PRICE / 100);
        assertEq(escrow.fees(NATIVE), PRICE / 100);
        _register(otherNode.addr, MIN_STAKE);
        assertTrue(registry.isStaked(otherNode.addr));
    }

    function test_TheRegistryHandsOverInTwoSteps() external {
        Ownable2Step owned = Ownable2Step(address(registry));
        vm.prank(owner);
        owned.transferOwnership(settler);
        assertEq(owned.owner(), owner);
        assertEq(owned.pendingOwner(), settler);
        vm.expectRevert(abi.encodeWithSelector(Ownable.OwnableUnauthorizedAccount.selector, requester.addr));
        vm.prank(requester.addr);
        owned.acceptOwnership();
        vm.prank(settler);
        owned.acceptOwnership();
        assertEq(owned.owner(), settler);
        assertEq(owned.pendingOwner(), address(0));
        vm.prank(settler);
        registry.setMinStake(1);
        assertEq(registry.minStake(), 1);
    }
}
