// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {IJobEscrow, JobSpec, Order} from "../../src/interfaces/IJobEscrow.sol";
import {Market} from "./Market.sol";

/// @notice Books of the market, kept by what the events alone tell, as an indexer would; and of each event, that it may be.
abstract contract Books is Market {
    /// What `JobOpened` carries besides its topics.
    struct Opened {
        address token;
        uint128 maxPrice;
        address assigner;
        uint64 deadline;
        uint32 challengeWindow;
        address arbiter;
        uint16 maxFeeBps;
        uint64 nonce;
        JobSpec spec;
        uint256 free;
    }

    /// @dev What came into the escrow and left it, by what the tokens say.
    mapping(address token => uint256) internal _in;
    mapping(address token => uint256) internal _out;
    mapping(bytes32 jobId => uint256) internal _endings;
    mapping(bytes32 jobId => uint256) internal _fee;
    /// @dev The results at hand are not to be settled.
    mapping(bytes32 jobId => bool) internal _forbidden;
    mapping(address node => mapping(address token => uint256)) internal _netEarned;
    mapping(address node => mapping(address token => uint256)) internal _withdrawn;
    /// @dev Balances as the events alone tell them.
    mapping(address owner => mapping(address token => uint256)) internal _toldFree;
    mapping(address owner => mapping(address token => uint256)) internal _toldThawing;
    mapping(address node => mapping(address token => uint256)) internal _toldEarned;
    mapping(bytes32 channel => uint256) internal _toldReserved;
    mapping(bytes32 channel => uint256) internal _claimed;
    mapping(bytes32 channel => uint64) internal _covered;
    /// @dev The highest nonce that a voucher was ever signed for.
    mapping(bytes32 channel => uint64) internal _signedFor;
    /// @dev Wei that left the registry after its time, and that nodes lost.
    uint256 internal _unbonded;
    uint256 internal _slashed;
    mapping(address node => uint256) internal _unbondEnd;

    /// @notice How often something happened: what never happens is not tested.
    mapping(string event_ => uint256) public happened;

    /// @dev Takes in what the call emitted.
    modifier booked() {
        vm.recordLogs();
        _;
        Vm.Log[] memory logs = vm.getRecordedLogs();
        for (uint256 i = 0; i < logs.length; ++i) {
            if (logs[i].emitter == address(escrow)) _fold(logs[i]);
        }
    }

    function _address(bytes32 topic) internal pure returns (address) {
        return address(uint160(uint256(topic)));
    }

    function _fold(Vm.Log memory log) private {
        bytes32 topic = log.topics[0];
        if (topic == IJobEscrow.Deposited.selector) _foldDeposit(log);
        else if (topic == IJobEscrow.Thawing.selector) _foldThaw(log);
        else if (topic == IJobEscrow.Withdrawn.selector) _foldWithdrawal(log);
        else if (topic == IJobEscrow.JobOpened.selector) _foldOpened(log);
        else if (topic == IJobEscrow.ResultSubmitted.selector) _foldResult(log);
        else if (topic == IJobEscrow.FeeTaken.selector) _foldFee(log);
        else if (topic == IJobEscrow.JobPaid.selector) _foldPaid(log);
        else if (topic == IJobEscrow.JobDisputed.selector) _foldDispute(log);
        else if (topic == IJobEscrow.JobResolved.selector) _foldResolved(log);
        else if (topic == IJobEscrow.JobRefunded.selector) _foldRefund(log);
        else if (topic == IJobEscrow.ChannelUpdated.selector) _foldChannel(log);
        else if (topic == IJobEscrow.ReservationChanged.selector) _foldReservation(log);
        else if (topic == IJobEscrow.VouchersRedeemed.selector) _foldVouchers(log);
        else if (topic == IJobEscrow.EarnedWithdrawn.selector) _foldEarnedWithdrawal(log);
        else if (topic == IJobEscrow.Skipped.selector) ++happened["result skipped"];
        else if (topic == IJobEscrow.VoucherSkipped.selector) ++happened["voucher skipped"];
    }

    // ── Accounts ────────────────────────────────────────────────────────────────────────────────────────────────────

    function _foldDeposit(Vm.Log memory log) private {
        (,, uint256 free) = abi.decode(log.data, (address, uint256, uint256));
        _toldFree[_address(log.topics[1])][_address(log.topics[2])] = free;
    }

    function _foldThaw(Vm.Log memory log) private {
        (address by, address token_) = (_address(log.topics[1]), _address(log.topics[2]));
        (_toldFree[by][token_], _toldThawing[by][token_],) = abi.decode(log.data, (uint256, uint256, uint64));
    }

    function _foldWithdrawal(Vm.Log memory log) private {
        (address by, address token_) = (_address(log.topics[1]), _address(log.topics[2]));
        (,, _toldFree[by][token_], _toldThawing[by][token_]) =
            abi.decode(log.data, (address, uint256, uint256, uint256));
    }

    function _foldEarnedWithdrawal(Vm.Log memory log) private {
        (,, uint256 earned) = abi.decode(log.data, (address, uint256, uint256));
        _toldEarned[_address(log.topics[1])][_address(log.topics[2])] = earned;
    }

    // ── Jobs ────────────────────────────────────────────────────────────────────────────────────────────────────────

    function _foldOpened(Vm.Log memory log) private {
        Opened memory opened = abi.decode(bytes.concat(bytes32(uint256(0x20)), log.data), (Opened));
        _toldFree[_address(log.topics[2])][opened.token] = opened.free;
    }

    function _foldResult(Vm.Log memory log) private {
        (address token_, uint128 price,,, uint256 free) =
            abi.decode(log.data, (address, uint128, bytes32, uint64, uint256));
        assertFalse(_forbidden[log.topics[1]], "taken without a signature");
        assertEq(price, _priceOf(_indexOf[log.topics[1]]), "not the price that was signed");
        _toldFree[_address(log.topics[2])][token_] = free;
        ++happened["result"];
    }

    function _foldFee(Vm.Log memory log) private {
        (_fee[log.topics[1]],) = abi.decode(log.data, (uint256, uint256));
        ++happened["fee"];
    }

    function _foldPaid(Vm.Log memory log) private {
        (address token_, uint128 price,, uint256 free, uint256 earned) =
            abi.decode(log.data, (address, uint128, bytes32, uint256, uint256));
        _foldPayment(log, token_, price, _priceOf(_indexOf[log.topics[1]]), 0);
        _toldFree[_address(log.topics[2])][token_] = free;
        _toldEarned[_address(log.topics[3])][token_] = earned;
        ++happened[_opened[log.topics[1]] ? "opened job paid" : "signed order paid"];
    }

    function _foldDispute(Vm.Log memory log) private {
        (address token_,,, uint256 free, uint256 thawing) =
            abi.decode(log.data, (address, uint128, uint64, uint256, uint256));
        address by = _address(log.topics[2]);
        (_toldFree[by][token_], _toldThawing[by][token_]) = (free, thawing);
    }

    function _foldResolved(Vm.Log memory log) private {
        (
            address token_,
            uint128 price,
            uint128 bond,
            uint256 slashed,
            uint256 compensation,
            uint256 free,
            uint256 earned
        ) = abi.decode(log.data, (address, uint128, uint128, uint256, uint256, uint256, uint256));
        assertLe(price, _priceOf(_indexOf[log.topics[1]]), "resolved above the price");
        _foldPayment(log, token_, price, price, bond);
        assertLe(slashed, BOND, "slashed more than a bond");
        assertLe(compensation, slashed, "compensated by more than was slashed");
        _slashed += slashed;
        _in[NATIVE] += compensation;
        _toldFree[_address(log.topics[2])][token_] = free;
        _toldEarned[_address(log.topics[3])][token_] = earned;
        ++happened[slashed == 0 ? "resolved" : "slashed"];
    }

    function _foldRefund(Vm.Log memory log) private {
        (address token_,, uint256 free) = abi.decode(log.data, (address, uint128, uint256));
        assertEq(++_endings[log.topics[1]], 1, "ended twice");
        _toldFree[_address(log.topics[2])][token_] = free;
        ++happened[_opened[log.topics[1]] ? "refunded" : "given back"];
    }

    /// @dev What a job pays goes to its node, from its requester, once.
    function _foldPayment(Vm.Log memory log, address token_, uint128 price, uint128 signed, uint128 bond) private {
        bytes32 jobId = log.topics[1];
        uint256 index = _indexOf[jobId];
        Order storage order = _orders[index];
        assertFalse(_forbidden[jobId], "settled without a signature");
        assertEq(++_endings[jobId], 1, "ended twice");
        assertEq(price, signed, "not the price that was signed");
        assertEq(token_, order.token, "token");
        assertEq(_address(log.topics[2]), order.requester, "requester");
        assertEq(_address(log.topics[3]), _nodeFor(index).addr, "paid another node");
        uint256 highest = order.maxFeeBps < 500 ? order.maxFeeBps : 500;
        assertLe(_fee[jobId], uint256(price) * highest / 10_000, "fee above its caps");
        _netEarned[_address(log.topics[3])][token_] += uint256(price) + bond - _fee[jobId];
    }

    // ── Channels ────────────────────────────────────────────────────────────────────────────────────────────────────

    function _foldChannel(Vm.Log memory log) private {
        address by = _address(log.topics[2]);
        (address token_, uint256 free, uint256 thawing, uint256 reserved, uint256 claimed) =
            abi.decode(log.data, (address, uint256, uint256, uint256, uint256));
        (_toldFree[by][token_], _toldThawing[by][token_]) = (free, thawing);
        bytes32 id = _channelId(by, _address(log.topics[3]), token_);
        _toldReserved[id] = reserved;
        _foldClaimed(id, claimed);
    }

    function _foldReservation(Vm.Log memory log) private {
        (address by, address token_) = (_address(log.topics[1]), _address(log.topics[3]));
        (uint256 reserved,,, uint256 free) = abi.decode(log.data, (uint256, uint256, uint64, uint256));
        _toldFree[by][token_] = free;
        _toldReserved[_channelId(by, _address(log.topics[2]), token_)] = reserved;
    }

    function _foldVouchers(Vm.Log memory log) private {
        (address to, address token_) = (_address(log.topics[1]), _address(log.topics[2]));
        (uint256 earned, bytes memory redemptions) = abi.decode(log.data, (uint256, bytes));
        for (uint256 i = 0; i < redemptions.length; i += 96) {
            _foldRedemption(
                to, token_, _wordAt(redemptions, i), _wordAt(redemptions, i + 32), _wordAt(redemptions, i + 64)
            );
        }
        _toldEarned[to][token_] = earned;
    }

    /// @dev The words of a redemption: requester and claimed, free and thawing, drawn, reserved and coveredNonce.
    function _foldRedemption(address to, address token_, uint256 a, uint256 b, uint256 c) private {
        address by = address(uint160(a >> 96));
        bytes32 id = _channelId(by, to, token_);
        uint256 claimed = a & type(uint96).max;
        assertGt(claimed, _claimed[id], "a redemption of nothing");
        uint256 paid = claimed - _claimed[id];
        _netEarned[to][token_] += paid;
        _foldClaimed(id, claimed);
        uint256 drawn = c >> 160;
        if (drawn != 0) (_toldFree[by][token_], _toldThawing[by][token_]) = (b >> 128, b & type(uint128).max);
        uint256 reserved = (c >> 64) & type(uint96).max;
        assertEq(_toldReserved[id], reserved + paid - drawn, "not what was reserved");
        _toldReserved[id] = reserved;
        assertGe(uint64(c), _covered[id], "uncovered");
        _covered[id] = uint64(c);
        ++happened[drawn == paid ? "redeemed" : "redeemed from a reservation"];
    }

    function _foldClaimed(bytes32 id, uint256 claimed) private {
        assertGe(claimed, _claimed[id], "claimed fell");
        _claimed[id] = claimed;
    }

    function _wordAt(bytes memory data, uint256 offset) private pure returns (uint256 word) {
        assembly ("memory-safe") {
            word := mload(add(add(data, 0x20), offset))
        }
    }
}
