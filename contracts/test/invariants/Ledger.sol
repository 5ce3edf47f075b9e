// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Vm} from "forge-std/Vm.sol";

import {IJobEscrow, JobSpec, JobState} from "../../src/interfaces/IJobEscrow.sol";

/// @notice The escrow's state as its events alone tell it, folded as an indexer would.
contract Ledger {
    struct Account {
        uint256 free;
        uint256 thawing;
        uint256 earned;
    }

    struct Job {
        JobState state;
        /// A result has waited for its window to end.
        bool submitted;
        address token;
        uint256 maxPrice;
        uint256 locked;
        /// What went back to the requester and to the node so far.
        uint256 returned;
        uint256 paid;
        address paidTo;
        uint256 endings;
    }

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

    mapping(address owner => mapping(address token => Account)) internal _accounts;
    mapping(bytes32 jobId => Job) internal _jobs;
    uint256 public skipped;

    error UnknownEvent(bytes32 topic);

    function account(address owner, address token) external view returns (Account memory) {
        return _accounts[owner][token];
    }

    function job(bytes32 jobId) external view returns (Job memory) {
        return _jobs[jobId];
    }

    function fold(Vm.Log[] calldata logs, address emitter) external {
        for (uint256 i = 0; i < logs.length; ++i) {
            if (logs[i].emitter == emitter) _fold(logs[i]);
        }
    }

    function _fold(Vm.Log calldata log) internal {
        bytes32 topic = log.topics[0];
        if (topic == IJobEscrow.Deposited.selector) _deposited(log);
        else if (topic == IJobEscrow.Thawing.selector) _thawing(log);
        else if (topic == IJobEscrow.Withdrawn.selector) _withdrawn(log);
        else if (topic == IJobEscrow.JobOpened.selector) _opened(log);
        else if (topic == IJobEscrow.ResultSubmitted.selector) _submitted(log);
        else if (topic == IJobEscrow.JobPaid.selector) _paid(log);
        else if (topic == IJobEscrow.JobRefunded.selector) _refunded(log);
        else if (topic == IJobEscrow.EarnedWithdrawn.selector) _earnedWithdrawn(log);
        else if (topic == IJobEscrow.Skipped.selector) ++skipped;
        else revert UnknownEvent(topic);
    }

    function _address(bytes32 topic) internal pure returns (address) {
        return address(uint160(uint256(topic)));
    }

    function _deposited(Vm.Log calldata log) internal {
        (,, uint256 free) = abi.decode(log.data, (address, uint256, uint256));
        _accounts[_address(log.topics[1])][_address(log.topics[2])].free = free;
    }

    function _thawing(Vm.Log calldata log) internal {
        Account storage acc = _accounts[_address(log.topics[1])][_address(log.topics[2])];
        (acc.free, acc.thawing,) = abi.decode(log.data, (uint256, uint256, uint64));
    }

    function _withdrawn(Vm.Log calldata log) internal {
        Account storage acc = _accounts[_address(log.topics[1])][_address(log.topics[2])];
        (,, acc.free, acc.thawing) = abi.decode(log.data, (address, uint256, uint256, uint256));
    }

    function _opened(Vm.Log calldata log) internal {
        Opened memory opened = abi.decode(bytes.concat(bytes32(uint256(0x20)), log.data), (Opened));
        Job storage j = _jobs[log.topics[1]];
        j.state = JobState.Open;
        j.token = opened.token;
        j.maxPrice = opened.maxPrice;
        j.locked = opened.maxPrice;
        _accounts[_address(log.topics[2])][opened.token].free = opened.free;
    }

    /// @dev Takes the requester's new balance, and keeps by how much it grew.
    function _return(Job storage j, address requester, uint256 free) internal {
        Account storage acc = _accounts[requester][j.token];
        j.returned += free - acc.free;
        acc.free = free;
    }

    function _submitted(Vm.Log calldata log) internal {
        Job storage j = _jobs[log.topics[1]];
        (, uint128 price,,, uint256 free) = abi.decode(log.data, (address, uint128, bytes32, uint64, uint256));
        j.state = JobState.Submitted;
        j.submitted = true;
        j.locked = price;
        _return(j, _address(log.topics[2]), free);
    }

    function _paid(Vm.Log calldata log) internal {
        Job storage j = _jobs[log.topics[1]];
        address node = _address(log.topics[3]);
        (, uint128 price,, uint256 free, uint256 earned) =
            abi.decode(log.data, (address, uint128, bytes32, uint256, uint256));
        j.state = JobState.Paid;
        j.locked = 0;
        j.paid += price;
        j.paidTo = node;
        ++j.endings;
        _return(j, _address(log.topics[2]), free);
        _accounts[node][j.token].earned = earned;
    }

    function _refunded(Vm.Log calldata log) internal {
        Job storage j = _jobs[log.topics[1]];
        (,, uint256 free) = abi.decode(log.data, (address, uint128, uint256));
        j.state = JobState.Refunded;
        j.locked = 0;
        ++j.endings;
        _return(j, _address(log.topics[2]), free);
    }

    function _earnedWithdrawn(Vm.Log calldata log) internal {
        (,,, uint256 earned) = abi.decode(bytes.concat(bytes32(0), log.data), (uint256, address, uint256, uint256));
        _accounts[_address(log.topics[1])][_address(log.topics[2])].earned = earned;
    }
}
