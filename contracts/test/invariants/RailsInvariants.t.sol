// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Test} from "forge-std/Test.sol";

import {RailsHandler} from "./RailsHandler.sol";

/// @notice What holds of a channel, its orders, vouchers and disputes, whatever is done to it.
contract RailsInvariantsTest is Test {
    RailsHandler internal handler;

    function setUp() external {
        handler = new RailsHandler();
        vm.warp(1_700_000_000);
        bytes4[] memory selectors = new bytes4[](17);
        selectors[0] = selectors[1] = RailsHandler.deposit.selector;
        selectors[2] = selectors[3] = selectors[4] = RailsHandler.submit.selector;
        selectors[5] = RailsHandler.redeem.selector;
        selectors[6] = RailsHandler.finalize.selector;
        selectors[7] = RailsHandler.resolve.selector;
        selectors[8] = selectors[9] = RailsHandler.decide.selector;
        selectors[10] = RailsHandler.reserve.selector;
        selectors[11] = RailsHandler.unreserve.selector;
        selectors[12] = RailsHandler.thawSome.selector;
        selectors[13] = RailsHandler.withdraw.selector;
        selectors[14] = RailsHandler.moveStake.selector;
        selectors[15] = RailsHandler.own.selector;
        selectors[16] = RailsHandler.wait.selector;
        targetSelector(FuzzSelector({addr: address(handler), selectors: selectors}));
        targetContract(address(handler));
    }

    function invariant_BothContractsHoldExactlyWhatTheyOwe() external view {
        (uint256 escrowed, uint256 inRegistry) = handler.held();
        (uint256 staked,) = handler.staked();
        assertEq(escrowed, handler.owed(), "escrow");
        assertEq(inRegistry, staked, "registry");
    }

    /// @dev Vouchers and orders speak of the same twelve jobs: together they never pay more than all of them.
    function invariant_TheRailsNeverPayTwice() external view {
        assertLe(handler.claimedNow(), handler.sumOf(handler.ORDERS()));
        assertFalse(handler.unclaimed());
    }

    function invariant_StakeCoversItsBonds() external view {
        (uint256 staked, uint256 bonded) = handler.staked();
        assertGe(staked, bonded);
        (uint256 count, uint256 bonds) = handler.bondedJobs();
        assertEq(count, bonds);
    }

    function invariant_TheOwnerLowersNoBalance() external view {
        assertFalse(handler.lowered());
    }

    /// @dev Invariants say nothing of what never happens.
    function test_TheHandlerGetsEverywhere() external {
        for (uint256 i = 0; i < 12; ++i) {
            handler.deposit(2 ether);
            handler.submit(i, i + 1);
            if (i % 4 == 3) handler.redeem(i - 3, i % 2 == 0);
            handler.decide(i, 2);
            handler.resolve(i, 5000, 5000);
        }
        assertGt(handler.resolved(), 0, "resolved");
        assertGt(handler.redeemed(), 0, "redeemed");
        (uint256 escrowed,) = handler.held();
        assertEq(escrowed, handler.owed());
    }
}
