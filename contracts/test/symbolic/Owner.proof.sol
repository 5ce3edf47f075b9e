// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IJobEscrow} from "../../src/interfaces/IJobEscrow.sol";
import {INodeRegistry} from "../../src/interfaces/INodeRegistry.sol";
import {ProofBase} from "./ProofBase.sol";

interface IOwned {
    function owner() external view returns (address);
    function transferOwnership(address newOwner) external;
    function acceptOwnership() external;
    function renounceOwnership() external;
}

/// @title No call of an owner's touches anybody's balance, whatever its arguments and whoever the owner is
/// @dev Of every account, channel, node and job, all slots stay as they were: that is more than "not lowered".
contract OwnerProof is ProofBase {
    function _calls(address target, Other memory other, address node, bytes memory call) internal {
        Slots memory before = _slots(other);
        Staked memory stake = _staked(node);
        uint256[2] memory held = [address(escrow).balance, address(registry).balance];
        vm.prank(IOwned(target).owner());
        (bool done,) = target.call(call);
        vm.assume(done);
        _assertUntouched(before, _slots(other));
        Staked memory now_ = _staked(node);
        assert(now_.stake == stake.stake);
        assert(now_.unbonding == stake.unbonding);
        assert(now_.bonds == stake.bonds);
        assert(now_.unbondEnd == stake.unbondEnd);
        assert(address(escrow).balance == held[0]);
        assert(address(registry).balance == held[1]);
    }

    function check_setFeeBps(Other memory other, address node, uint16 feeBps) external {
        _calls(address(escrow), other, node, abi.encodeCall(IJobEscrow.setFeeBps, (feeBps)));
        assert(escrow.feeBps() <= 500);
    }

    function check_setPaused(Other memory other, address node, bool paused) external {
        _calls(address(escrow), other, node, abi.encodeCall(IJobEscrow.setPaused, (paused)));
    }

    function check_transferOwnership(Other memory other, address node, address to) external {
        _calls(address(escrow), other, node, abi.encodeCall(IOwned.transferOwnership, (to)));
    }

    function check_renounceOwnership(Other memory other, address node) external {
        _calls(address(escrow), other, node, abi.encodeCall(IOwned.renounceOwnership, ()));
    }

    function check_registrySetPaused(Other memory other, address node, bool paused) external {
        _calls(address(registry), other, node, abi.encodeCall(INodeRegistry.setPaused, (paused)));
    }

    function check_registrySetMinStake(Other memory other, address node, uint128 minStake, uint64 time) external {
        _at(time);
        _calls(address(registry), other, node, abi.encodeCall(INodeRegistry.setMinStake, (minStake)));
    }

    function check_registryTransferOwnership(Other memory other, address node, address to) external {
        _calls(address(registry), other, node, abi.encodeCall(IOwned.transferOwnership, (to)));
    }

    /// @notice The fees of one coin, all of them and nothing else.
    function check_withdrawFees(Other memory other, address node) external {
        address coin = address(0);
        vm.assume(other.feeToken != coin);
        Slots memory before = _slots(other);
        Staked memory stake = _staked(node);
        uint256 fees = escrow.fees(coin);
        vm.assume(fees < 2 ** 128);
        uint256 held = address(escrow).balance;
        vm.prank(IOwned(address(escrow)).owner());
        escrow.withdrawFees(coin, PAYEE);
        _assertUntouched(before, _slots(other));
        assert(_staked(node).stake == stake.stake);
        assert(_less(held, address(escrow).balance) == fees);
        assert(escrow.fees(coin) == 0);
    }
}
